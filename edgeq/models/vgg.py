"""VGG-16 with BatchNorm for small images: thirteen convolutions, five poolings, one linear layer."""

from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each closed by a 2x2 maximum."""

    def __init__(self, stages: tuple[tuple[int, ...], ...] = CHANNELS, *, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in stages:
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(inputs, classes)

    @no_type_check  # torch.fx calls it with proxies
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        return self.fc(self.dropout(self.flatten(self.pool(self.features(x)))))


def vgg16_bn(classes: int = 10) -> VGG:
    """Return VGG-16: 14.7 million parameters."""
    return VGG(classes=classes)
