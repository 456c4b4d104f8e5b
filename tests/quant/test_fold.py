import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.quant.fold import Affine, fold, implied

STEPS = (torch.tensor(0.01), torch.tensor([0.02]), torch.tensor(0.05))


@given(offset=st.floats(-1e6, 1e6), gain=st.floats(1e-3, 30.0), shift=st.integers(10, 22))
def test_float32_holds_every_folded_bias(offset: float, gain: float, shift: int) -> None:
    affine = Affine(torch.tensor([gain], dtype=torch.float64), torch.tensor([offset], dtype=torch.float64))
    found = fold(torch.ones(1, 3), implied(affine, steps=STEPS, shift=shift), weight_range=(-128, 127))
    in_units = found.bias.double() * found.multiplier.double()
    assert float(in_units) == float(np.float32(float(in_units)))
    m = float(found.multiplier) * 2**shift
    wanted = offset / 0.05 / float(found.multiplier)
    if abs(wanted) < 2**30 - 1:
        grain = 1 if abs(wanted) * m <= 2**24 - m else 2 * abs(wanted) * m / (2**24 - m)
        assert abs(float(found.bias) - wanted) <= grain / 2 + 1e-3


def test_the_bias_of_a_usual_channel_is_rounded_to_the_accumulator() -> None:
    affine = Affine(torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64))
    found = fold(torch.ones(1, 3), implied(affine, steps=STEPS, shift=17), weight_range=(-128, 127))
    assert float(found.bias) == round(0.7 / 0.05 / float(found.multiplier))
