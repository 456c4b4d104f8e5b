"""The steps of an edge: LSQ's gradient size on wide edges, ReLU6's ceiling, and who observes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.models import build
from edgeq.quant.bits import activation_range, at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.grid import Codes, Grid
from edgeq.quant.network import QuantConfig
from edgeq.quant.quantizer import quantize


def grid(bits: int, *, wide: bool, signed: bool = False, ceiling: float | None = None) -> Grid:
    codes = {bits: Codes(8 if wide else bits, bits)}
    return Grid(codes, signed=signed, learned=True, count=64, ceiling=ceiling)


@given(st.integers(2, 7), st.booleans(), st.floats(0.02, 0.5))
def test_the_step_of_a_narrow_copy_moves_as_a_narrow_grid_of_its_own(bits: int, signed: bool, step: float) -> None:
    x = torch.linspace(-2, 2, 64) if signed else torch.linspace(0, 2, 64)
    lo, hi = activation_range(bits, signed=signed)
    moved = []
    for wide in (False, True):
        edge = grid(bits, wide=wide, signed=signed)
        ratio = edge.range(bits)[1] / hi  # what the narrow copy's step is, in steps of the edge
        edge.set_step(bits, step / ratio)
        narrow = edge.step(bits) * ratio
        (quantize(x / narrow, lo, hi) * narrow - x.square()).square().sum().backward()
        parameter = edge.steps[str(bits)]
        assert parameter.grad is not None
        moved.append(float((parameter.detach() - 0.01 * parameter.grad) * ratio))
    assert moved[1] == pytest.approx(moved[0], rel=1e-4)


def test_a_step_above_the_ceiling_finds_its_way_back() -> None:
    edge = grid(4, wide=False, ceiling=6.0)
    edge.set_step(4, 1.0)
    step = edge.step(4)
    assert step.item() == pytest.approx(6 / 15)
    step.backward()
    parameter = edge.steps["4"]
    assert parameter.grad is not None and float(parameter.grad) > 0


def test_a_branch_does_not_observe_the_grid_of_its_addition(monkeypatch: pytest.MonkeyPatch) -> None:
    config = QuantConfig(bits=(32, 4), scales="observer")
    net = multibit(build("resnet8", classes=10), image_shape=(3, 16, 16), config=config).train()
    seen: list[int] = []
    monkeypatch.setattr(Grid, "observe", lambda self, codes, bits: seen.append(id(self)))
    with at_bits(net, 4):
        net(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    assert len(seen) == len(set(seen)) == len(net.grids)
