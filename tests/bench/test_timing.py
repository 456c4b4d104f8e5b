import time

import numpy as np
import pytest

from edgeq.bench import Plan, describe, measure, noisy
from edgeq.bench.timing import BLOCKS, Latency, interval, summarise
from edgeq.bench.verdict import Point, verdict
from edgeq.errors import InputError

QUICK = Plan(seconds=0.01, rounds=40, warmup=1, attempts=1, limit=1e9)


def test_a_slower_function_is_measured_slower() -> None:
    results = measure({"short": lambda: time.sleep(1e-4), "long": lambda: time.sleep(2e-3)}, plan=QUICK)
    assert results["long"].p50_ms > 2.0
    assert results["short"].min_ms < results["long"].min_ms
    assert all(r.min_ms <= r.p50_ms <= r.p90_ms <= r.p99_ms for r in results.values())


def test_every_function_is_called_once_a_round_in_an_order_that_changes_but_repeats_with_the_seed() -> None:
    def rounds(seed: int) -> list[str]:
        seen: list[str] = []

        def call(name: str):
            return lambda: (seen.append(name), time.sleep(5e-5))  # long enough to be one call per sample

        plan = Plan(seconds=1e-6, rounds=30, warmup=0, attempts=1, limit=1e9, seed=seed)
        measure({name: call(name) for name in "abc"}, plan=plan)
        return seen[-90:]

    taken = rounds(3)
    orders = {tuple(taken[start : start + 3]) for start in range(0, 90, 3)}
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(orders) > 1
    assert taken == rounds(3)


def test_a_tiny_function_is_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the function and the reading of the clock move, so that a busy machine changes nothing."""
    now = 0
    calls = 0

    def tiny() -> None:
        nonlocal calls, now
        calls, now = calls + 1, now + 130

    def read() -> int:
        nonlocal now
        now += 50
        return now

    monkeypatch.setattr("edgeq.bench.timing.time.perf_counter_ns", read)
    monkeypatch.setattr("edgeq.bench.timing.time.perf_counter", lambda: read() / 1e9)
    plan = Plan(seconds=1e-6, rounds=20, warmup=0, attempts=1, limit=1e9)
    result = measure({"tiny": tiny}, plan=plan)["tiny"]
    assert calls > 150 * result.samples
    assert result.p50_ms == pytest.approx(130e-6, rel=0.01)


def test_drift_widens_the_interval_although_single_samples_would_hide_it() -> None:
    rng = np.random.default_rng(0)
    steady = 1.0 + 0.01 * rng.standard_normal(2000)
    drifting = np.sort(steady + 0.2 * rng.random(2000))
    plan = Plan()
    width = [high - low for low, high in (interval(steady, plan=plan), interval(drifting, plan=plan))]
    assert width[1] > 20 * width[0]


def test_the_interval_holds_the_median_and_repeats() -> None:
    samples = np.random.default_rng(1).exponential(1.0, 40 * BLOCKS + 7)
    low, high = interval(samples, plan=Plan())
    assert low < float(np.median(samples)) < high
    assert (low, high) == interval(samples, plan=Plan())


def test_noise_is_tried_again_with_more_time_and_then_named() -> None:
    state = {"calls": 0}

    def unsteady() -> None:
        state["calls"] += 1
        time.sleep(1e-3 if state["calls"] % 40 < 20 else 1e-4)

    once = Plan(seconds=1e-6, rounds=40, warmup=0, attempts=1, limit=1e-6)
    measure({"unsteady": unsteady}, plan=once)
    single, state["calls"] = state["calls"], 0
    thrice = Plan(seconds=1e-6, rounds=40, warmup=0, attempts=3, limit=1e-6)
    results = measure({"unsteady": unsteady}, plan=thrice)
    assert state["calls"] >= 2.5 * single
    assert noisy(results, plan=thrice) == ("unsteady",)


def test_figures_of_known_samples() -> None:
    latency = summarise(np.arange(1.0, 101.0), plan=Plan())
    assert (latency.samples, latency.p50_ms, latency.min_ms, latency.mad_ms) == (100, 50.5, 1.0, 25.0)
    assert latency.p90_ms == pytest.approx(90.1)  # the quantile is interpolated in float64


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0.0}, {"rounds": 3}, {"attempts": 0}, {"limit": 0.0}, {"confidence": 1.0}]
)
def test_a_plan_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        Plan(**wrong)  # type: ignore[arg-type]


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match="at least one function"):
        measure({})


def test_noise_is_relative() -> None:
    latency = Latency(samples=9, p50_ms=2.0, p90_ms=2.0, p99_ms=2.0, min_ms=2.0, mad_ms=0.0, low_ms=1.9, high_ms=2.1)
    assert latency.noise == pytest.approx(0.05)  # a division of floats


def test_the_machine_is_described() -> None:
    machine = describe()
    assert machine.cores >= 1
    assert machine.load >= 0
    assert set(machine.versions) >= {"onnxruntime", "numpy", "python"}


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([Point(8, 800, 1.0, 0.99, 1.01), Point(2, 200, 1.02, 1.01, 1.03)], "fewer bits buy file size, not latency"),
        ([Point(8, 800, 1.0, 0.7, 1.3), Point(2, 200, 1.2, 0.9, 1.5)], "within their intervals"),
        ([Point(8, 800, 2.0, 1.99, 2.01), Point(2, 200, 1.0, 0.99, 1.01)], "2 bits are 2.00 times as fast as 8 bits"),
        ([Point(8, 800, 1.0, 1.0, 1.0)], ""),
    ],
)
def test_the_verdict_follows_the_measurement(points: list[Point], words: str) -> None:
    assert words in verdict(points)
    assert bool(words) == bool(verdict(points))
