"""Residual networks for small images: ResNet-20/32/56 (He et al. 2015) and MLPerf Tiny's ResNet-8."""

from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution in the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    @no_type_check  # torch.fx calls it with proxies
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Run the block."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, `blocks` blocks each."""

    def __init__(self, blocks: int, *, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        stages = []
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64)):
            for index in range(blocks):
                stages.append(Block(inputs, outputs, 2 if stage > 0 and index == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @no_type_check  # torch.fx calls it with proxies
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(self.flatten(self.pool(self.blocks(x))))


def resnet8(classes: int = 10) -> ResNet:
    """Return MLPerf Tiny's shape: one block a stage, 78 thousand parameters."""
    return ResNet(1, classes=classes)


def resnet20(classes: int = 10) -> ResNet:
    """Return ResNet-20: 0.27 million parameters."""
    return ResNet(3, classes=classes)


def resnet32(classes: int = 10) -> ResNet:
    """Return ResNet-32: 0.47 million parameters."""
    return ResNet(5, classes=classes)


def resnet56(classes: int = 10) -> ResNet:
    """Return ResNet-56: 0.86 million parameters."""
    return ResNet(9, classes=classes)
