"""MobileNetV2 for small images: the first two strides of the ImageNet network are 1, so a 32x32 image ends at 4x4."""

from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn

SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _layer(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1 without activation; add the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = _layer(inputs, hidden, 1, 1, 1) if expand != 1 else []
        layers += _layer(hidden, hidden, 3, stride, hidden)
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    @no_type_check  # torch.fx calls it with proxies
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Run the block."""
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """A first convolution, seventeen inverted residuals, a wide 1x1 convolution, the classifier."""

    def __init__(self, *, classes: int = 10) -> None:
        super().__init__()
        layers = _layer(3, 32, 3, 1, 1)
        inputs = 32
        for expand, outputs, count, stride in SETTINGS:
            for index in range(count):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expand))
                inputs = outputs
        layers += _layer(inputs, 1280, 1, 1, 1)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1280, classes)

    @no_type_check  # torch.fx calls it with proxies
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        return self.fc(self.dropout(self.flatten(self.pool(self.features(x)))))


def mobilenet_v2(classes: int = 10) -> MobileNetV2:
    """Return MobileNetV2: 2.2 million parameters."""
    return MobileNetV2(classes=classes)
