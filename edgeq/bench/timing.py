"""Time several functions against each other.

**Interleaved.** A processor's clock drifts, and other programs come and go. So the functions are called in turn, each
once a round, in an order that is shuffled anew every round (from a seed): what disturbs one disturbs all.

**An interval that knows about drift.** The samples of one function are cut into BLOCKS contiguous blocks; the blocks
are drawn with replacement, and the median is taken of each draw. Drift makes the blocks differ and the interval wide,
where drawing single samples would call them independent and the median far too certain.

**Refusing.** If half the interval's width, over the median, exceeds `Plan.limit`, the measurement is repeated with
twice the time, at most `Plan.attempts` times in all; the steadiest attempt is returned. `noisy` names what is still
too wide, so that nobody publishes it.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from edgeq.errors import InputError

BLOCKS = 20
SHORTEST_NS = 20_000  # a sample shorter than this repeats the call: reading the clock costs about 50 ns


@dataclass(frozen=True)
class Plan:
    """How long and how carefully to measure.

    Attributes:
        seconds: Measuring time per function and attempt, at least.
        rounds: Rounds per attempt, at least.
        warmup: Calls of each function before the first sample.
        attempts: How often to try, each time twice as long, until the result is steady.
        limit: Largest half width of the interval, relative to the median.
        confidence: Of the interval.
        draws: Bootstrap draws.
        seed: Decides the order and the draws.
    """

    seconds: float = 2.0
    rounds: int = 100
    warmup: int = 10
    attempts: int = 3
    limit: float = 0.05
    confidence: float = 0.95
    draws: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.seconds <= 3600:
            raise InputError(f"expected seconds above 0 and at most 3600, got {self.seconds}; 2 are usual")
        if self.rounds < BLOCKS or self.warmup < 0 or self.attempts < 1 or self.draws < 10:
            raise InputError(
                f"expected rounds >= {BLOCKS}, warmup >= 0, attempts >= 1 and draws >= 10, got {self.rounds}, "
                f"{self.warmup}, {self.attempts} and {self.draws}"
            )
        if not 0 < self.limit < math.inf or not 0.5 <= self.confidence < 1:  # infinity is no number for JSON
            raise InputError(
                f"expected a finite limit above 0 and confidence in 0.5..1, got {self.limit} and {self.confidence}; "
                "0.05 is usual, 1 accepts nearly everything"
            )
        if self.seed < 0:
            raise InputError(f"expected a seed of 0 or more, got {self.seed}; choose another")


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call.

    Attributes:
        samples: Number of samples.
        p50_ms: Median.
        p90_ms: Of ten calls, nine are faster.
        p99_ms: Of a hundred calls, 99 are faster.
        min_ms: The fastest.
        mad_ms: Median distance from the median.
        low_ms: Lower end of the median's interval.
        high_ms: Upper end of the median's interval.
    """

    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    mad_ms: float
    low_ms: float
    high_ms: float

    @property
    def noise(self) -> float:
        """Half the interval's width over the median."""
        return (self.high_ms - self.low_ms) / 2 / self.p50_ms


def measure(calls: Mapping[str, Callable[[], object]], *, plan: Plan | None = None) -> dict[str, Latency]:
    """Return the latency of each function; the steadiest of up to `plan.attempts` attempts.

    Args:
        calls: Functions by name; each call is timed as it is, so a GPU's must synchronise.
        plan: How long and how carefully.
    """
    plan = plan or Plan()
    if not calls:
        raise InputError("expected at least one function to measure, got none")
    repeats = {name: _repeats(call, plan) for name, call in calls.items()}
    best: dict[str, Latency] = {}
    for attempt in range(plan.attempts):
        samples = _rounds(calls, repeats, plan, attempt)
        result = {name: summarise(taken, plan=plan) for name, taken in samples.items()}
        if not best or _worst(result) < _worst(best):
            best = result
        if not noisy(best, plan=plan):
            break
    return best


def noisy(results: Mapping[str, Latency], *, plan: Plan) -> tuple[str, ...]:
    """Return the names whose medians are too uncertain."""
    return tuple(name for name, latency in results.items() if latency.noise > plan.limit)


def summarise(samples_ms: Float64[np.ndarray, " n"], *, plan: Plan) -> Latency:
    """Return the figures of one function's samples, in the order in which they were taken."""
    median = float(np.median(samples_ms))
    low, high = interval(samples_ms, plan=plan)
    return Latency(
        samples=len(samples_ms),
        p50_ms=median,
        p90_ms=float(np.quantile(samples_ms, 0.9)),
        p99_ms=float(np.quantile(samples_ms, 0.99)),
        min_ms=float(samples_ms.min()),
        mad_ms=float(np.median(np.abs(samples_ms - median))),
        low_ms=low,
        high_ms=high,
    )


def interval(samples_ms: Float64[np.ndarray, " n"], *, plan: Plan) -> tuple[float, float]:
    """Return the block-bootstrap interval of the median."""
    length = len(samples_ms) // BLOCKS
    blocks = samples_ms[len(samples_ms) - length * BLOCKS :].reshape(BLOCKS, length)
    rng = np.random.default_rng(plan.seed)
    medians = [np.median(blocks[rng.integers(0, BLOCKS, BLOCKS)]) for _ in range(plan.draws)]
    tail = (1 - plan.confidence) / 2
    return float(np.quantile(medians, tail)), float(np.quantile(medians, 1 - tail))


def _repeats(call: Callable[[], object], plan: Plan) -> int:
    """Warm a function up and return how many calls make one sample."""
    for _ in range(plan.warmup):
        call()
    repeats = 1
    # no call takes less than a nanosecond, so there are never more calls in a sample than it has nanoseconds
    while (fastest := min(_sample(call, repeats) for _ in range(3))) < SHORTEST_NS and repeats < SHORTEST_NS:
        repeats = max(2 * repeats, min(10 * repeats, round(repeats * SHORTEST_NS / max(fastest, 1))))
    return repeats


def _rounds(
    calls: Mapping[str, Callable[[], object]], repeats: Mapping[str, int], plan: Plan, attempt: int
) -> dict[str, np.ndarray]:
    """Call everything once a round until there are rounds and time enough."""
    order = random.Random(f"{plan.seed} {attempt}")
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + plan.seconds * len(names) * 2**attempt
    while time.perf_counter() < deadline or len(taken[names[0]]) < plan.rounds:
        for name in order.sample(names, len(names)):
            taken[name].append(_sample(calls[name], repeats[name]) / repeats[name] / 1e6)
    return {name: np.asarray(values) for name, values in taken.items()}


def _sample(call: Callable[[], object], repeats: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return time.perf_counter_ns() - start


def _worst(results: Mapping[str, Latency]) -> float:
    return max(latency.noise for latency in results.values())
