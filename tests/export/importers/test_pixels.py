import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeq.export.importers.pixels import fit, table
from edgeq.export.multiplier import requantize
from edgeq.pixels import Pixels

EVERY = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1)


@settings(max_examples=15)
@given(mean=st.floats(0, 1), std=st.floats(0.1, 2), zoom=st.floats(0.5, 2), signed=st.booleans())
@example(mean=0.9921875, std=1.0, zoom=1.0, signed=False)  # a single code between the ends
@example(mean=0.5, std=1.0, zoom=1.0, signed=False)  # every value is a tie
def test_the_fitted_layer_is_the_table_but_for_what_is_counted(mean, std, zoom, signed) -> None:
    pixels = Pixels((mean,), (std,))
    limits = (-128, 127) if signed else (0, 255)
    codes = table(pixels, 2, zoom / std / 255, limits)
    span = (min(0, int(codes.min())), max(1, int(codes.max())))
    weight, bias, requant, wrong = fit(codes, span)
    acc = weight.astype(np.int64).reshape(1, 2, 1) * (np.arange(256) - 128) + bias[None, :, None]
    got = requantize(acc, requant)[0]
    assert (got != codes).sum() == wrong and np.abs(got - codes).max() <= 1
    between = pixels.floats(EVERY)[0, 0, :, 0] / (zoom / std / 255) % 1.0
    ties = np.count_nonzero(np.abs(between - 0.5) < 1e-3)  # half to even alternates there, which no line does
    assert wrong <= 16 + 2 * ties


def test_plain_bytes_are_exact() -> None:
    codes = table(Pixels(), 1, 1 / 255, (0, 255))
    np.testing.assert_array_equal(codes, [np.arange(256)])
    assert fit(codes, (0, 255))[3] == 0
