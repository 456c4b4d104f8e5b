from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.export.multiplier import (
    FLOAT32_EXACT,
    Requant,
    half_even_shift,
    requant_is_exact,
    requantize,
    saturation,
    saturations,
    shift_for,
)

RANGES = [(0, 127), (0, 255), (-128, 127), (0, 31), (0, 15), (0, 3), (-1, 1), (-5, 9)]
NO_LIMIT = np.array([1 << 31], np.int64)


def near_thresholds(m: int, n: int, lo: int, hi: int) -> np.ndarray:
    k = np.arange(lo, hi + 2, dtype=np.int64)
    return (((2 * k - 1) << n) // (2 * m))[:, None] + np.arange(-2, 3)


@given(limits=st.sampled_from(RANGES), m=st.integers(1, FLOAT32_EXACT - 1), seed=st.integers(0, 999))
def test_the_integer_rule_is_the_rational_one(limits: tuple[int, int], m: int, seed: int) -> None:
    rq = Requant(np.array([m], np.int32), shift_for(*limits), *limits)
    far = np.random.default_rng(seed).integers(-(1 << 31), 1 << 31, 20)
    acc = np.concatenate([near_thresholds(m, rq.n, *limits).reshape(-1), far])
    got = requantize(acc[None, None], rq)[0, 0]
    assert got.tolist() == [min(max(round(Fraction(int(a) * m, 1 << rq.n)), rq.lo), rq.hi) for a in acc]


@given(limits=st.sampled_from(RANGES), m=st.integers(1, FLOAT32_EXACT - 1))
def test_float32_requantization_of_a_short_multiplier_is_the_integer_rule(limits: tuple[int, int], m: int) -> None:
    rq = Requant(np.array([m], np.int32), shift_for(*limits), *limits)
    assert requant_is_exact(rq, NO_LIMIT).all()
    acc = near_thresholds(m, rq.n, *limits).reshape(1, 1, -1)
    engine = np.rint(acc.astype(np.float32) * (np.float32(m) * np.float32(2.0**-rq.n)))
    np.testing.assert_array_equal(np.clip(engine, *limits).astype(np.int32), requantize(acc, rq))


@pytest.mark.parametrize(("lo", "hi", "n"), [(0, 127, 17), (-128, 127, 16), (0, 31, 19), (0, 15, 20), (0, 3, 22)])
def test_shift_for(lo: int, hi: int, n: int) -> None:
    assert shift_for(lo, hi) == n


@given(limits=st.sampled_from(RANGES), m=st.integers(1, FLOAT32_EXACT - 1))
def test_saturation_is_the_first_that_saturates_on_both_sides(limits: tuple[int, int], m: int) -> None:
    rq = Requant(np.array([m], np.int32), shift_for(*limits), *limits)
    first = saturation(m, rq.n, *limits)
    assert saturations(rq).tolist() == [first]
    largest = Fraction(2 * max(limits[1], -limits[0]) + 1, 2)
    assert Fraction((first - 1) * m, 1 << rq.n) < largest <= Fraction(first * m, 1 << rq.n)


def test_a_long_multiplier_is_not_exact_until_the_reach_is_small() -> None:
    rq = Requant(np.array([1_234_567, 3], np.int32), 24, 0, 127)
    assert requant_is_exact(rq, np.array([1000, 1000])).tolist() == [False, True]
    assert requant_is_exact(rq, np.array([13, 1000])).tolist() == [True, True]


@given(value=st.integers(-(1 << 40), 1 << 40), n=st.integers(0, 30))
def test_half_even_shift(value: int, n: int) -> None:
    assert half_even_shift(np.array([value]), n)[0] == round(Fraction(value, 1 << n))


@pytest.mark.parametrize(
    ("m", "n", "lo", "hi", "message"),
    [(1, 31, 0, 1, "shift in"), (0, 3, 0, 1, "multipliers in"), (1, 3, 5, 5, "code range"), (1, 3, 0, 256, "range")],
)
def test_requants_out_of_range_are_refused(m: int, n: int, lo: int, hi: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Requant(np.array([m], np.int32), n, lo, hi)
