import numpy as np
import pytest

from edgeq.calib.histogram import Histogram

X = np.abs(np.random.default_rng(0).normal(size=20_000))


def of(x: np.ndarray, bins: int = 4096) -> Histogram:
    counts, _ = np.histogram(x, bins, (0.0, float(x.max())))
    return Histogram(counts.astype(np.float64), float(x.max()))


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9, 0.999, 1.0])
def test_quantile_is_numpys_up_to_a_bin(fraction: float) -> None:
    h = of(X)
    assert abs(h.quantile(fraction) - np.quantile(X, fraction, method="inverted_cdf")) <= 2 * h.width


def test_quantile_skips_empty_bins() -> None:
    h = Histogram(np.array([0.0, 0.0, 4.0, 0.0, 0.0, 4.0]), 6.0)
    assert h.quantile(0.25) == 2.5
    assert h.quantile(0.5) == 3.0
    assert h.quantile(0.75) == 5.5


def test_above_counts_zeros_as_values() -> None:
    h = Histogram(np.array([1.0, 1.0, 1.0, 1.0]), 4.0, zeros=4.0)
    assert h.above(2.5) == 1.5 / 8
    assert h.above(4.0) == 0.0


def test_coarser_keeps_sum_and_range() -> None:
    h = of(X)
    assert h.coarser(64).counts.sum() == h.counts.sum()
    assert h.coarser(64).top == h.top
    assert h.coarser(10_000) is h


@pytest.mark.parametrize("hi", [1, 3, 15, 127])
def test_errors_are_those_of_the_samples(hi: int) -> None:
    h = of(X)
    clips = np.linspace(h.top / 4, h.top, 9)
    for clip, error in zip(clips, h.errors(clips, hi), strict=True):
        step = clip / hi
        exact = np.square(np.minimum(np.rint(X / step), hi) * step - X).sum()
        # the width of a bin adds width^2 / 12 per value at most, here 1/16 of step^2 / 12 at 8 bits
        assert error == pytest.approx(exact, rel=0.02)
