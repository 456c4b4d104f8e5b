"""Engines that `edgeq bench` knows: from an artefact to a function that runs one batch."""

from collections.abc import Callable

import numpy as np

from edgeq.errors import InputError
from edgeq.export import Artefact

Call = Callable[[], object]


def ort(artefact: Artefact, threads: int, batch: int) -> Call:
    """Return one run of ONNX Runtime on random images (integer kernels take the same time whatever the values)."""
    from edgeq.integer import runner

    run = runner(artefact.model, threads=threads)
    shape = (batch, *artefact.graph.input_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return lambda: run(images)


ENGINES: dict[str, Callable[[Artefact, int, int], Call]] = {"ort": ort}


def make(engine: str, artefact: Artefact, *, threads: int, batch: int) -> Call:
    """Return a function that runs `batch` images once.

    Raises:
        InputError: There is no such engine, or it does not take the artefact.
    """
    if engine not in ENGINES:
        raise InputError(f"expected engines of {', '.join(ENGINES)}, got {engine!r}; choose among them")
    return ENGINES[engine](artefact, threads, batch)
