"""Artefact folders on the command line: opening them, and finding the run that they came from."""

import os
from collections.abc import Sequence
from pathlib import Path

from edgeq import runs
from edgeq.errors import InputError
from edgeq.export import Artefact, load
from edgeq.files import sha256, write_json


def open_artefacts(paths: Sequence[Path]) -> list[Artefact]:
    """Load several different artefacts."""
    if not paths:
        raise InputError("expected artefact folders, got none; make one with edgeq export")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"expected different artefacts, got {path} twice; name each once")
        seen.add(path.resolve())
    return [load(path) for path in paths]


def origin(run: Path, info: runs.RunInfo, art: Path) -> dict[str, object]:
    """Return what an artefact's manifest says about the run that it comes from."""
    return {
        "run": os.path.relpath(run.resolve(), art.resolve()),
        "weights_sha256": sha256(run / runs.WEIGHTS),
        "model": info.model,
        "data": info.data,
        "seed": info.training.get("seed"),
    }


def origin_run(artefact: Artefact) -> Path | None:
    """Return the run folder that the artefact comes from, if it is still there with the same weights."""
    said = artefact.manifest["origin"]
    if not isinstance(said.get("run"), str):
        return None
    run = Path(os.path.normpath(artefact.path.resolve() / said["run"]))
    weights = run / runs.WEIGHTS
    return run if weights.is_file() and sha256(weights) == said.get("weights_sha256") else None


def model_sha256(artefact: Artefact) -> str:
    """Return the SHA-256 of model.onnx."""
    return str(artefact.manifest["files"]["model.onnx"]["sha256"])


def keep(artefact: Artefact, kind: str, row: dict[str, object]) -> None:
    """Keep a measurement of an artefact in the results of the run that it comes from, where a report finds it."""
    run = origin_run(artefact)
    if run is not None:
        write_json(run / runs.RESULTS / f"{kind}-{model_sha256(artefact)[:12]}.json", row)
