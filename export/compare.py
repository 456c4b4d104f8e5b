"""Engines against the interpreter, every edge, code by code, a few images at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from .certificate import Divergence, Run
from .engines import ENGINES, Codes, Engine, engine_makers
from .graph import IntegerGraph
from .reference import run as interpret

BATCH, CODES = 16, 1 << 22  # images and codes per step: all edges of an engine and the interpreter are in memory


def compare(
    graph: IntegerGraph,
    model: bytes,
    images: UInt8[np.ndarray, "batch channels height width"],
    *,
    engines: tuple[str, ...] = ENGINES,
    slow_images: int = 0,
    target: str = "ort",
) -> tuple[Run, ...]:
    """Run engines on all images and compare every edge that they show with the interpreter.

    Args:
        graph: The definition.
        model: The ONNX model.
        images: What to run on.
        engines: Names from `ENGINES`.
        slow_images: Images for `onnx.reference`; 0 leaves it out.
        target: The dialect of the model.
    """
    return compare_with(graph, images, engine_makers(graph, model, engines, slow_images, target))


def compare_with(
    graph: IntegerGraph,
    images: UInt8[np.ndarray, "batch channels height width"],
    makers: Sequence[tuple[str, Callable[[], Engine]]],
) -> tuple[Run, ...]:
    """Run any engines, given by name and by what makes them, on all images and compare what they show."""
    order = tuple(node.name for node in graph.nodes)
    tallies = [_started(name, make, order) for name, make in makers]
    for start, batch in _batches(graph, images):
        expected = interpret(graph, batch)
        for tally in tallies:
            tally.take(start, batch, expected)
    return tuple(tally.result() for tally in tallies)


def codes_per_image(graph: IntegerGraph) -> int:
    """Return the number of codes on all edges for one image."""
    return sum(int(np.prod(edge.shape)) for edge in graph.edges.values())


def _batches(graph: IntegerGraph, images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    size = max(1, min(BATCH, CODES // codes_per_image(graph)))
    for start in range(0, len(images), size):
        yield start, images[start : start + size]


def _started(name: str, make: Callable[[], Engine], order: tuple[str, ...]) -> "_Tally":
    try:
        return _Tally(name, order, make())
    except Exception as error:  # an engine that refuses the model is a finding, whatever it raises
        return _Tally(name, order, None, error=_one_line(error))


@dataclass
class _Tally:
    """What one engine has shown so far."""

    name: str
    order: tuple[str, ...]
    engine: Engine | None
    error: str = ""
    images: int = 0
    tensors: int = 0
    codes: int = 0
    wrong: dict[str, Divergence] = field(default_factory=dict)

    def take(self, start: int, batch: np.ndarray, expected: Codes) -> None:
        if self.engine is None or self.error:
            return
        if self.engine.most is not None:
            batch = batch[: max(0, self.engine.most - self.images)]
        if not len(batch):
            return
        try:
            codes = self.engine.run(batch)
        except Exception as error:  # as above
            self.error = _one_line(error)
            return
        self.images += len(batch)
        self.tensors = len(codes)
        for name, value in codes.items():
            want = expected[name][: len(batch)]
            self.codes += want.size
            if not np.array_equal(value, want):
                self._differ(name, start, value, want)

    def _differ(self, name: str, start: int, value: np.ndarray, want: np.ndarray) -> None:
        if value.shape != want.shape:
            self.error = f"layer {name!r}: expected shape {want.shape}, got {value.shape}"
            return
        distance = np.abs(value.astype(np.int64) - want)
        before = self.wrong.get(name, Divergence(name, 0, 0, start + int(np.argwhere(distance)[0][0])))
        codes = before.codes + int(np.count_nonzero(distance))
        self.wrong[name] = Divergence(name, codes, max(before.largest, int(distance.max())), before.image)

    def result(self) -> Run:
        mismatches = sum(divergence.codes for divergence in self.wrong.values())
        first = next((self.wrong[name] for name in self.order if name in self.wrong), None)
        version = self.engine.version if self.engine else ""
        return Run(self.name, version, self.images, self.tensors, self.codes, mismatches, first, self.error)


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:60]} … {text[-230:]}"  # the reason stands at the end
