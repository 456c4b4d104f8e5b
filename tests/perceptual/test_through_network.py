"""The penalties through a real multi-bit network: first and second derivatives with straight-through rounding.

The numerical derivative of a rounded network is 0 or infinite. What the straight-through estimator differentiates is
another function, which has the same value here: each rounding replaced by u + (round(u0) - u0), the offset of this
point. That surrogate is differentiated numerically and must agree with autograd through the real, rounding network.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.models import build
from edgeq.perceptual import Alignment, edges, fdp, feature_taps, gpdp
from edgeq.perceptual.edges import edge_threshold
from edgeq.quant import quantizer
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import MultiBitNet

BITS = (32, 4, 2)
SOFT = Alignment(sharpness=10.0)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.bn_b = nn.Conv2d(4, 4, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(4)
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn_a(self.a(x)))
        x = torch.relu(self.bn_b(self.b(x)))
        return self.fc(self.flatten(self.pool(x)))


class Replay:
    """Notes constants in the order they come up, once; from `rewind` on, gives the noted ones instead."""

    def __init__(self) -> None:
        self.notes: list[Tensor] = []
        self.playing: Iterator[Tensor] | None = None

    def rewind(self) -> None:
        self.playing = iter(self.notes)

    def constant(self, value: Tensor) -> Tensor:
        if self.playing is not None:
            return next(self.playing)
        self.notes.append(value.detach())
        return self.notes[-1]


class Rounding(Replay):
    """Stands for the rounding function: adds the offset to the nearest integer, a constant."""

    def apply(self, u: Tensor) -> Tensor:
        return u + self.constant(u.round() - u)


class Threshold(Replay):
    """Stands for the edges' threshold, which is a constant for autograd."""

    def __call__(self, magnitude: Tensor, q: float) -> Tensor:
        return self.constant(edge_threshold(magnitude, q))


def penalties(net: MultiBitNet, images: Tensor, taps: tuple[str, ...]) -> Tensor:
    """FDP + GPDP of one batch."""
    labels = torch.arange(len(images)) % 3
    gradients, features = [], []
    for bits in BITS:
        x = images.clone().requires_grad_()
        with at_bits(net, bits):
            values = net.values(x, keep=taps)
        features.append([values[name].real for name in taps])
        loss = F.cross_entropy(values[net.names[-1]].real, labels, reduction="sum")
        gradients.append(torch.autograd.grad(loss, x, create_graph=True)[0])
    maps = [torch.stack(per_tap) for per_tap in zip(*features, strict=True)]
    return fdp(maps, SOFT) + gpdp(torch.stack(gradients), SOFT)


def test_weight_gradient_is_that_of_the_straight_through_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    net = multibit(Tiny(), bits=BITS, image_shape=(3, 8, 8))
    taps = feature_taps(net)
    net.double().train()
    with torch.no_grad():  # no weight exactly at the end of its range, where the clamp has two derivatives
        for unit in net.weighted().values():
            for weight_step in unit.weight_steps.values():
                weight_step.mul_(0.93)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    weights = [unit.weight for unit in net.weighted().values()]
    value = penalties(net, images, taps)
    gradient = torch.autograd.grad(value, weights)
    assert all(g.isfinite().all() and g.abs().max() > 1e-6 for g in gradient)

    rounding, threshold = Rounding(), Threshold()
    monkeypatch.setattr(quantizer, "_RoundInPlace", rounding)
    monkeypatch.setattr(edges, "edge_threshold", threshold)
    torch.testing.assert_close(penalties(net, images, taps), value)
    assert rounding.notes

    step = 1e-6
    for _ in range(4):
        direction = [torch.randn_like(w) for w in weights]
        ends = []
        for sign in (1.0, -1.0):
            rounding.rewind()
            threshold.rewind()
            kept = [w.detach().clone() for w in weights]
            with torch.no_grad():
                for w, d in zip(weights, direction, strict=True):
                    w.add_(d, alpha=sign * step)
            ends.append(penalties(net, images, taps).detach())
            with torch.no_grad():
                for w, before in zip(weights, kept, strict=True):
                    w.copy_(before)
        numerical = (ends[0] - ends[1]) / (2 * step)
        analytical = torch.stack([(g * d).sum() for g, d in zip(gradient, direction, strict=True)]).sum()
        torch.testing.assert_close(analytical, numerical, rtol=1e-4, atol=1e-6)


def test_gpdp_reaches_every_width_and_the_learned_steps() -> None:
    net = multibit(build("resnet8", classes=10), bits=BITS).train()
    images = torch.rand(4, 3, 32, 32)
    penalties(net, images, feature_taps(net)).backward()
    for name, unit in net.weighted().items():
        assert unit.weight.grad is not None and unit.weight.grad.isfinite().all(), name
    for bits in ("4", "2"):
        steps = [u.weight_steps[bits].grad for u in net.weighted().values()]
        assert any(g is not None and g.abs().max() > 0 for g in steps)
