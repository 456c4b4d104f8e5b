"""Benchmark artefacts: every artefact on every engine and thread count, interleaved, as rows for tables and files."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeq.bench.engines import make
from edgeq.bench.machine import describe
from edgeq.bench.timing import Latency, Plan, measure, noisy
from edgeq.bench.verdict import Point, verdict
from edgeq.errors import InputError
from edgeq.export import Artefact

MOST_THREADS = 1024


@dataclass(frozen=True)
class Setting:
    """Where and how to run.

    Attributes:
        engines: Names of `edgeq.bench.engines.ENGINES`.
        threads: Thread counts; 0 is the engine's own choice.
        batch: Images per run.
    """

    engines: tuple[str, ...] = ("ort",)
    threads: tuple[int, ...] = (1,)
    batch: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.engines or not self.threads:
            raise InputError("expected at least one engine and one thread count, got none; leave the option out")
        if any(not 0 <= count <= MOST_THREADS for count in self.threads) or len(set(self.threads)) != len(self.threads):
            raise InputError(
                f"expected different thread counts from 0 (the engine's choice) to {MOST_THREADS}, got "
                f"{list(self.threads)}; for example 1 0"
            )
        if not 1 <= self.batch <= 4096:
            raise InputError(f"expected a batch of 1 to 4096 images, got {self.batch}; choose another")


def bench(artefacts: Sequence[Artefact], *, setting: Setting, plan: Plan) -> dict[str, Any]:
    """Measure all artefacts and return rows, verdicts, the names of what is too noisy, and the machine.

    Thread counts are measured one after the other: threads of one setting shall not wait beside those of another.
    """
    machine = describe()  # the load before the benchmark adds its own
    rows: list[dict[str, Any]] = []
    verdicts: dict[str, str] = {}
    unsteady: list[str] = []
    for engine in setting.engines:
        for threads in setting.threads:
            calls: dict[str, Callable[[], object]] = {
                str(a.path): make(engine, a, threads=threads, batch=setting.batch) for a in artefacts
            }
            results = measure(calls, plan=plan)
            where = f"{engine}, {threads or 'all'} thread{'' if threads == 1 else 's'}"
            unsteady += [f"{name} on {where}" for name in noisy(results, plan=plan)]
            rows += [_row(a, results[str(a.path)], engine, threads, setting.batch) for a in artefacts]
            sentence = _verdict(artefacts, results)
            if sentence:
                verdicts[where] = sentence
    return {"machine": asdict(machine), "plan": asdict(plan), "rows": rows, "verdicts": verdicts, "noisy": unsteady}


def _row(artefact: Artefact, latency: Latency, engine: str, threads: int, batch: int) -> dict[str, Any]:
    return {
        "artefact": str(artefact.path),
        "model_sha256": artefact.manifest["files"]["model.onnx"]["sha256"],
        "name": artefact.graph.name,
        "bits": artefact.graph.bits,
        "target": artefact.manifest["target"],
        "size_bytes": len(artefact.model),
        "engine": engine,
        "threads": threads,
        "batch": batch,
        **asdict(latency),
        "noise": latency.noise,
    }


def _verdict(artefacts: Sequence[Artefact], results: dict[str, Latency]) -> str:
    """Compare the widths, if the artefacts are one network."""
    if len({(a.graph.name, a.graph.input_shape) for a in artefacts}) > 1:
        return ""
    taken = [(a, results[str(a.path)]) for a in artefacts]
    return verdict([Point(a.graph.bits, len(a.model), r.p50_ms, r.low_ms, r.high_ms) for a, r in taken])
