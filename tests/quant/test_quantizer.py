"""Rounding, straight-through gradients, steps and short multipliers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.export.multiplier import add_shift, shift_for
from edgeq.quant.quantizer import lsq_step, mse_steps, quantize, round_ste, scale_gradient, snap


def test_quantize_rounds_half_to_even_and_clamps() -> None:
    u = torch.tensor([-9.0, -0.5, 0.5, 1.5, 2.5, 2.6, 99.0])
    assert quantize(u, -3, 7).tolist() == [-3.0, 0.0, 0.0, 2.0, 2.0, 3.0, 7.0]


def test_gradient_is_one_strictly_inside_the_range_only() -> None:
    u = torch.tensor([-0.1, 0.0, 0.1, 6.9, 7.0, 7.1], requires_grad=True)
    quantize(u, 0, 7).sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_quantize_is_twice_differentiable() -> None:
    x = torch.tensor([0.3, 1.2, 9.0], requires_grad=True)
    w = torch.tensor([2.0, 3.0, 4.0], requires_grad=True)
    (g,) = torch.autograd.grad((quantize(x * w, 0, 7) ** 2).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), w)
    # d/dx = 2 q w inside; d2/dxdw = 2 q + 2 w x (straight through), nothing where it clips
    expected = torch.tensor([2 * 1 + 2 * 2 * 0.3, 2 * 4 + 2 * 3 * 1.2, 0.0])
    torch.testing.assert_close(h, expected)


def test_the_step_gradient_is_lsq() -> None:
    x = torch.tensor([-1.0, 0.33, 0.9, 5.0])
    s = torch.tensor(0.5, requires_grad=True)
    (quantize(x / s, -3, 3) * s).sum().backward()
    u = x / 0.5
    inside = (u > -3) & (u < 3)
    expected = torch.where(inside, u.round() - u, u.sign() * 3).sum()
    assert s.grad is not None
    torch.testing.assert_close(s.grad, expected)


def test_lsq_step_scales_the_gradient_and_stays_positive() -> None:
    s = torch.tensor([-0.25, 0.0, 0.5], requires_grad=True)
    step = lsq_step(s, 16, 4)
    assert step.tolist() == pytest.approx([0.25, 1e-8, 0.5])
    step[2].backward()
    assert s.grad is not None
    assert s.grad[2].item() == pytest.approx(1 / 8)


@given(st.floats(-1e3, 1e3, width=32), st.floats(0, 4, width=32))
def test_scale_gradient_keeps_the_value(value: float, factor: float) -> None:
    x = torch.tensor(value, requires_grad=True)
    y = scale_gradient(x, factor)
    assert abs(y.item() - value) <= 2e-7 * (1 + factor) * abs(value)
    y.backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(factor)


@given(st.floats(1e-6, 3.0))
def test_snap_gives_a_short_dyadic_near_by(value: float) -> None:
    n = shift_for(0, 127)
    short = snap(torch.tensor(value, dtype=torch.float64), n).item()
    m = short * 2**n
    assert m == int(m) >= 1
    assert abs(short - value) <= 2.0 ** -(n + 1) or m == 1


def test_snap_passes_the_gradient_through() -> None:
    x = torch.tensor(0.00391, dtype=torch.float64, requires_grad=True)
    snap(x, 17).backward()
    assert x.grad is not None
    assert x.grad.item() == 1.0


@pytest.mark.parametrize(("lo", "hi", "n"), [(0, 127, 17), (-128, 127, 16), (0, 31, 19), (0, 15, 20), (0, 3, 22)])
def test_the_shift_is_the_largest_that_float32_holds(lo: int, hi: int, n: int) -> None:
    assert shift_for(lo, hi) == n
    assert (2 * max(hi, -lo) + 1) << n <= 2**25 < (2 * max(hi, -lo) + 1) << (n + 1)


@given(st.floats(1e-4, 300.0), st.floats(1e-4, 300.0))
def test_an_additions_partial_sums_stay_below_two_to_the_24(a: float, b: float) -> None:
    n = add_shift(a, b)
    ma, mb = max(round(a * 2**n), 1), max(round(b * 2**n), 1)
    assert 255 * (ma + mb) + 128 * (ma + mb) + (128 << n) <= 2**24 + 384 * 2  # rounding of the two multipliers


def test_mse_steps_are_no_worse_than_the_full_range() -> None:
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for hi in (1, 7, 127):
        steps = mse_steps(weight, -hi, hi)
        rows = weight.flatten(1)

        def error(step: torch.Tensor, rows: torch.Tensor = rows, hi: int = hi) -> torch.Tensor:
            return (quantize(rows / step[:, None], -hi, hi) * step[:, None] - rows).square().sum(1)

        assert bool((error(steps) <= error(rows.abs().amax(1) / hi) + 1e-6).all())


def test_round_ste_leaves_its_input_alone() -> None:
    x = torch.tensor([0.4, 1.6])
    assert round_ste(x).tolist() == [0.0, 2.0]
    assert x.tolist() == pytest.approx([0.4, 1.6])
