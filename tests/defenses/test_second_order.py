"""GPDP's double backward through the folded, deployed arithmetic, against a numerical derivative.

The straight-through estimator differentiates a function in which each rounding is u + (round(u0) - u0), the offset of
this point being a constant. That function is differentiated numerically; autograd through the real network must agree.

Integer accumulators lie exactly on the bounds of the clamps, where a gradient jumps. The test moves the bounds by less
than a rounding, which changes no code.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.defenses import triqdef
from edgeq.defenses.triqdef import input_gradients
from edgeq.perceptual import Alignment, edges, gpdp
from edgeq.perceptual.edges import edge_threshold
from edgeq.quant import fold, quantizer
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet
from edgeq.quant.quantizer import snap

from .conftest import SIDE, tiny

SOFT = Alignment(sharpness=10.0)


class Constants:
    """Notes constants in the order they come up; after `rewind`, gives the noted ones instead."""

    def __init__(self) -> None:
        self.notes: list[Tensor] = []
        self.playing: Iterator[Tensor] | None = None

    def rewind(self) -> None:
        self.playing = iter(self.notes)

    def __call__(self, value: Tensor) -> Tensor:
        if self.playing is not None:
            return next(self.playing)
        self.notes.append(value.detach())
        return self.notes[-1]


def _in_float64(net: MultiBitNet, bits: int) -> Callable[[Tensor], Tensor]:
    """A surrogate that does not round its logits to float32."""

    def victim(images: Tensor) -> Tensor:
        net.width.deployed = True
        with at_bits(net, bits):
            return net(images)

    return victim


def test_weight_gradient_of_gpdp_is_that_of_the_straight_through_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny((32, 4, 2)).double()
    with torch.no_grad():  # no weight exactly at the end of its range, where the clamp has two derivatives
        for unit in net.weighted().values():
            for step in unit.weight_steps.values():
                step.mul_(0.93)
        for name, tensor in [*net.named_buffers(), *net.named_parameters()]:
            if name.endswith(("running_mean", "norms.32.bias", "norms.4.bias", "norms.2.bias")):
                tensor.copy_(0.1 * torch.randn_like(tensor))
    hardtanh = F.hardtanh
    monkeypatch.setattr(F, "hardtanh", lambda u, lo, hi: hardtanh(u, lo - 0.013, hi + 0.017))
    images, labels = torch.rand(3, 3, SIDE, SIDE, dtype=torch.float64), torch.arange(3)
    weights = [unit.weight for unit in net.weighted().values()]
    monkeypatch.setattr(triqdef, "surrogate", _in_float64)

    def penalty() -> Tensor:
        return gpdp(input_gradients.__wrapped__(net, images, labels, net.bits), SOFT)  # type: ignore[attr-defined]

    value = penalty()
    gradient = torch.autograd.grad(value, weights)
    assert all(g.isfinite().all() and g.abs().max() > 1e-6 for g in gradient)

    constants = Constants()

    class Offset:
        @staticmethod
        def apply(u: Tensor) -> Tensor:
            return u + constants(u.round() - u)

    monkeypatch.setattr(quantizer, "_RoundInPlace", Offset)
    monkeypatch.setattr(fold, "snap", lambda m, n: m + constants(snap(m.detach(), n) - m))
    monkeypatch.setattr(edges, "edge_threshold", lambda magnitude, q: constants(edge_threshold(magnitude, q)))
    torch.testing.assert_close(penalty(), value)

    def moved(direction: list[Tensor], size: float) -> Tensor:
        constants.rewind()
        kept = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w.add_(d, alpha=size)
        found = penalty().detach()
        with torch.no_grad():
            for w, before in zip(weights, kept, strict=True):
                w.copy_(before)
        return found

    for _ in range(3):
        direction = [torch.randn_like(w) for w in weights]
        numerical = (moved(direction, 1e-6) - moved(direction, -1e-6)) / 2e-6
        analytical = torch.stack([(g * d).sum() for g, d in zip(gradient, direction, strict=True)]).sum()
        torch.testing.assert_close(analytical, numerical, rtol=1e-4, atol=1e-6)
