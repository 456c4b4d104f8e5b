import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeq.calib.histogram import Histogram
from edgeq.calib.methods import GAUSSIAN_PERCENTILES, METHODS, MSE, AbstractMethod, Entropy, MinMax, Percentile, method
from edgeq.errors import InputError

HIS = (1, 3, 7, 15, 31, 127)
RNG = np.random.default_rng(0)
SAMPLES = {
    "gaussian": np.abs(RNG.normal(size=20_000)),
    "laplace": RNG.exponential(size=20_000),
    "uniform": RNG.uniform(size=20_000),
    "outliers": np.append(np.abs(RNG.normal(size=20_000)), [9.0, 11.0, 12.0]),
}
histograms = st.builds(
    Histogram,
    arrays(np.float64, 256, elements=st.integers(0, 1000).map(float)).filter(lambda c: c[-1] > 0),
    st.floats(1e-3, 1e3),
)
levels = st.sampled_from(HIS)


def of(x: np.ndarray, bins: int = 8192) -> Histogram:
    counts, _ = np.histogram(x, bins, (0.0, float(x.max())))
    return Histogram(counts.astype(np.float64), float(x.max()))


def squared_error(x: np.ndarray, step: float, hi: int) -> float:
    return float(np.square(np.minimum(np.rint(x / step), hi) * step - x).sum())


@pytest.mark.parametrize("hi", HIS)
@pytest.mark.parametrize("kind", SAMPLES)
def test_mse_finds_what_brute_force_on_the_samples_finds(kind: str, hi: int) -> None:
    x = SAMPLES[kind]
    best = min(squared_error(x, clip / hi, hi) for clip in np.linspace(0.05, 1.0, 80) * x.max())
    assert squared_error(x, MSE().step(of(x), hi), hi) <= 1.01 * best


@pytest.mark.parametrize(("hi", "clip"), [(1, 1.224), (3, 1.97), (7, 2.48), (15, 2.90), (31, 3.28), (127, 3.92)])
def test_mse_and_default_percentile_agree_on_a_gaussian(hi: int, clip: float) -> None:
    x = np.linspace(0, 8, 8193)[1:] - 4 / 8192
    gaussian = Histogram(np.exp(-x * x / 2), 8.0)
    assert MSE().step(gaussian, hi) * hi == pytest.approx(clip, rel=0.02)
    assert Percentile().step(gaussian, hi) * hi == pytest.approx(clip, rel=0.02)
    assert 100 * math.erf(clip / math.sqrt(2)) == pytest.approx(GAUSSIAN_PERCENTILES[hi], abs=0.3)


def naive_divergence(counts: list[float], end: int, hi: int) -> float:
    """KL(P || Q), written out bin by bin."""
    p = counts[:end]
    p[-1] += sum(counts[end:])
    cells: dict[int, list[int]] = {}
    for i in range(end):
        if p[i] > 0:
            cells.setdefault(round((i + 0.5) * hi / end), []).append(i)
    q = [0.0] * end
    for members in cells.values():
        for i in members:
            q[i] = max(sum(counts[j] for j in members) / len(members), 1e-6 * sum(counts))
    total = 0.0
    for i in range(end):
        if p[i] > 0:
            total += p[i] / sum(p) * math.log((p[i] / sum(p)) / (q[i] / sum(q)))
    return total


@pytest.mark.parametrize("hi", [1, 3, 7])
@pytest.mark.parametrize("kind", SAMPLES)
def test_entropy_finds_the_least_divergence(kind: str, hi: int) -> None:
    h = of(SAMPLES[kind], bins=96)
    ends = range(2 * hi, 97)
    naive = [naive_divergence(h.counts.tolist(), end, hi) for end in ends]
    chosen = round(Entropy().step(h, hi) * hi / h.width)
    assert naive[chosen - 2 * hi] == pytest.approx(min(naive), rel=1e-9)


@pytest.mark.parametrize("hi", HIS)
def test_entropy_keeps_the_whole_of_a_flat_histogram(hi: int) -> None:
    assert Entropy().step(Histogram(np.full(2048, 7.0), 3.0), hi) == pytest.approx(3.0 / hi)


@pytest.mark.parametrize("hi", [31, 127])
def test_entropy_drops_a_lonely_outlier(hi: int) -> None:
    x = np.append(np.abs(RNG.normal(size=200_000)), [40.0])  # which would weigh on the squared error: 1296 alone
    assert 2.5 < Entropy().step(of(x), hi) * hi < 8.0


@given(histograms, levels)
def test_minmax_clips_nothing(h: Histogram, hi: int) -> None:
    assert MinMax().step(h, hi) * hi == pytest.approx(h.top, rel=1e-15)


@given(histograms, levels, st.sampled_from(METHODS))
def test_steps_are_positive_and_never_beyond_the_largest_value(h: Histogram, hi: int, chosen: AbstractMethod) -> None:
    assert 0.0 < chosen.step(h, hi) <= h.top / hi * (1 + 1e-12)


@given(histograms, levels, st.sampled_from(METHODS), st.integers(-20, 20))
def test_a_scaled_histogram_gives_a_scaled_step(h: Histogram, hi: int, chosen: AbstractMethod, power: int) -> None:
    scaled = Histogram(h.counts, h.top * 2.0**power)  # a power of two, so that ties stay ties
    assert chosen.step(scaled, hi) == pytest.approx(chosen.step(h, hi) * 2.0**power, rel=1e-9)


@given(histograms, levels)
def test_mse_is_never_worse_than_minmax(h: Histogram, hi: int) -> None:
    clips = np.array([MSE().step(h, hi), MinMax().step(h, hi)]) * hi
    best, whole = h.errors(clips, hi)
    assert best <= whole * (1 + 1e-9)


@given(histograms, levels, st.floats(1.0, 100.0), st.floats(1.0, 100.0))
def test_percentile_is_monotone(h: Histogram, hi: int, p: float, q: float) -> None:
    p, q = sorted((p, q))
    assert Percentile(q=p).step(h, hi) <= Percentile(q=q).step(h, hi)


@pytest.mark.parametrize("chosen", METHODS)
@pytest.mark.parametrize("hi", HIS)
def test_a_dead_edge_gets_a_positive_finite_step(chosen: AbstractMethod, hi: int) -> None:
    assert chosen.step(Histogram(np.zeros(64), 0.0, zeros=100.0), hi) == 1.0 / hi


@pytest.mark.parametrize("chosen", METHODS)
@pytest.mark.parametrize("hi", HIS)
def test_a_constant_edge_keeps_its_value(chosen: AbstractMethod, hi: int) -> None:
    constant = Histogram(np.append(np.zeros(8191), 50.0), 2.0)
    step = chosen.step(constant, hi)
    assert min(round(2.0 / step), hi) * step == pytest.approx(2.0, rel=1e-3)


def test_methods_by_name() -> None:
    assert [method(known.name) for known in METHODS] == list(METHODS)
    with pytest.raises(InputError, match="minmax, percentile, entropy, mse"):
        method("median")


@pytest.mark.parametrize("q", [0.0, -1.0, 100.1])
def test_an_impossible_percentile_is_refused(q: float) -> None:
    with pytest.raises(InputError, match="percentile"):
        Percentile(q=q)
