"""Gather what runs, artefacts and result files say, network by network and width by width. Nothing is measured here.

An artefact belongs to the network of the run that it was exported from, if that run is still where the manifest says
and has the same weights; else it stands for itself. Measurements belong to a model by its SHA-256.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeq import runs
from edgeq.cli.artefacts import model_sha256, open_artefacts, origin_run
from edgeq.errors import InputError
from edgeq.export import Artefact
from edgeq.export.graph import Conv, Linear
from edgeq.files import read_json
from edgeq.robustness.pictures import Pictures, open_pictures
from edgeq.robustness.store import FOLDER

Json = Mapping[str, Any]  # Any: JSON
ATTACKS = ("robustness.json", "attacks.json")
SENSITIVITY = "sensitivity.json"
WIDTHS = tuple(map(str, (32, *range(2, 9))))  # as JSON names them


@dataclass(frozen=True)
class Row:
    """One width of a network; None is what nobody measured.

    Attributes:
        bits: The width; 32 is the float reference.
        simulated: Accuracy of the network in the deployed arithmetic.
        integer: Accuracy of the integer model in ONNX Runtime.
        size_bytes: Of model.onnx; at 32 bits of the float32 weights.
        latency: A row of a benchmark.
        certificate: The artefact's proof.
        equal: Whether every logit of the test split equalled the network's.
        artefact: Its folder.
        target: Its dialect.
        mixed: Whether layers between the first and the last have bits of their own.
    """

    bits: int
    simulated: float | None = None
    integer: float | None = None
    size_bytes: int | None = None
    latency: Json | None = None
    certificate: Json | None = None
    equal: bool | None = None
    artefact: str = ""
    target: str = ""
    mixed: bool = False

    @property
    def name(self) -> str:
        """What the row is called."""
        if self.bits == 32:
            return "32 (float)"
        return f"{self.bits} (mixed)" if self.mixed else str(self.bits)

    @property
    def accuracy(self) -> float | None:
        """The integer model's accuracy, or else the network's."""
        return self.simulated if self.integer is None else self.integer

    @property
    def exact(self) -> bool | None:
        """Whether the model is proved, and no logit was ever seen to differ."""
        if self.certificate is None:
            return None
        return bool(self.certificate["exact"]) and self.equal is not False


@dataclass(frozen=True)
class Network:
    """One network: where it comes from, how it trained, its widths from high to low, and what attacks did to it."""

    label: str
    model: str
    data: str
    rows: tuple[Row, ...]
    metrics: tuple[Json, ...] = ()
    training: Json = field(default_factory=dict)
    versions: Json = field(default_factory=dict)
    machine: Json | None = None
    attacks: Json | None = None
    pictures: Pictures | None = None
    sensitivity: Json | None = None


def collect(paths: Sequence[Path], *, results: Sequence[Path] = ()) -> tuple[Network, ...]:
    """Return the networks of run and artefact folders, in the order in which they are first named.

    Args:
        paths: Run folders and artefact folders.
        results: JSON files of `edgeq bench` and `edgeq evaluate ART`, for measurements made elsewhere.

    Raises:
        InputError: A path is neither, or is damaged.
    """
    if not paths:
        raise InputError("expected run or artefact folders, got none; name one")
    folders = [path for path in paths if not (path / "manifest.json").exists()]
    artefacts = open_artefacts([path for path in paths if path not in folders]) if len(folders) < len(paths) else []
    groups: dict[Path | str, list[Artefact]] = {path.resolve(): [] for path in folders}
    for artefact in artefacts:
        run = origin_run(artefact)
        groups.setdefault(artefact.graph.name if run is None else run, []).append(artefact)
    names = {path.resolve(): str(path) for path in folders}
    more = [document(path) for path in results]
    return tuple(
        _from_run(key, names.get(key, key.name), members, more)
        if isinstance(key, Path)
        else _from_artefacts(key, members, more)
        for key, members in groups.items()
    )


def _from_run(folder: Path, label: str, artefacts: Sequence[Artefact], more: Sequence[Json]) -> Network:
    info = runs.read_info(folder)
    kept = sorted((folder / runs.RESULTS).glob("*.json"))
    documents = [*(document(path) for path in kept), *more]
    simulated = {row["bits"]: row["accuracy"] for row in runs.read_evaluation(folder)}
    rows = [_row(artefact, documents, simulated) for artefact in artefacts]
    for bits in sorted(set(simulated) - {row.bits for row in rows}):
        size = _float_bytes(artefacts[0]) if bits == 32 and artefacts else None
        rows.append(Row(bits, simulated=simulated[bits], size_bytes=size, mixed=bits in info.quant.layer_bits))
    return Network(
        label=label,
        model=info.model,
        data=info.data,
        rows=_sorted(rows),
        metrics=metrics_of(folder),
        training=info.training,
        versions=read_json(folder / runs.CONFIG).get("versions", {}),
        machine=_machine(rows, documents),
        attacks=_attacks(folder / runs.RESULTS),
        pictures=open_pictures(folder / runs.RESULTS / FOLDER),
        sensitivity=_sensitivity(folder / runs.RESULTS / SENSITIVITY),
    )


def _attacks(results: Path) -> Json | None:
    """Return the whole evaluation of `edgeq transfer`, or else the one of `edgeq evaluate --attacks`."""
    found = next((path for name in ATTACKS if (path := results / name).exists()), None)
    if found is None:
        return None
    body = document(found)
    missing = [name for name in ("headline", "cells", "plan", "integer", "warnings") if name not in body]
    if missing:
        raise InputError(f"expected {missing[0]} in {found}, got none; run edgeq transfer again")
    return body


def _sensitivity(path: Path) -> Json | None:
    if not path.exists():
        return None
    body = document(path)
    missing = [name for name in ("reference", "reference_accuracy", "images", "widths") if name not in body]
    if missing:
        raise InputError(f"expected {missing[0]} in {path}, got none; run edgeq sensitivity again")
    return body


def _from_artefacts(name: str, artefacts: Sequence[Artefact], documents: Sequence[Json]) -> Network:
    rows = [_row(artefact, documents, {}) for artefact in artefacts]
    first = artefacts[0].manifest
    data = str(first["origin"].get("data") or "unknown data")
    machine = _machine(rows, documents)
    return Network(name, name, data, _sorted(rows), versions=first.get("versions", {}), machine=machine)


def _row(artefact: Artefact, documents: Sequence[Json], simulated: Mapping[int, float]) -> Row:
    sha, bits = model_sha256(artefact), artefact.graph.bits
    integer = next((d for d in documents if d.get("model_sha256") == sha and "correct" in d), {})
    weighted = [node for node in artefact.graph.nodes if isinstance(node, Conv | Linear)]
    return Row(
        bits=bits,
        simulated=simulated.get(bits),
        integer=integer.get("accuracy"),
        size_bytes=len(artefact.model),
        latency=_latency(sha, documents),
        certificate=read_json(artefact.path / "certificate.json"),
        equal=integer.get("equal"),
        artefact=str(artefact.path),
        target=str(artefact.manifest["target"]),
        mixed=len({node.weight_bits for node in weighted[1:-1]}) > 1,
    )


def _latency(sha: str, documents: Iterable[Json]) -> Json | None:
    """Return the benchmark row of a model with the fewest threads and images, the newest document first."""
    rows = [row for d in documents for row in d.get("rows", ()) if row.get("model_sha256") == sha]
    return min(reversed(rows), key=lambda row: (row["threads"] or 1 << 20, row["batch"]), default=None)


def _machine(rows: Sequence[Row], documents: Sequence[Json]) -> Json | None:
    """Return the machine of the benchmark whose rows are shown."""
    shown = [row.latency for row in rows if row.latency is not None]
    for document in documents:
        if any(row in shown for row in document.get("rows", ())):
            return document.get("machine")
    return None


def _float_bytes(artefact: Artefact) -> int:
    """Return what the same weights and biases take as float32."""
    weighted = [node for node in artefact.graph.nodes if isinstance(node, Conv | Linear)]
    return 4 * int(sum(np.size(node.weight) + np.size(node.bias) for node in weighted))


def _sorted(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (-row.bits, row.target)))


def document(path: Path) -> Json:
    """Read a JSON object."""
    body = read_json(path)
    if not isinstance(body, dict):
        raise InputError(
            f"expected the JSON object of an edgeq command in {path}, got {type(body).__name__}; drop the file"
        )
    return body


def metrics_of(folder: Path) -> tuple[Json, ...]:
    """Return the lines of a run's training, checked."""
    lines = runs.read_metrics(folder)
    for number, line in enumerate(lines, start=1):
        accuracy = line.get("accuracy", {})
        if not isinstance(accuracy, dict) or not all(
            bits in WIDTHS and isinstance(value, int | float) for bits, value in accuracy.items()
        ):
            raise InputError(
                f"expected the accuracy of each width in line {number} of {folder / runs.METRICS}, got {accuracy!r}; "
                "remove the damaged file"
            )
    return tuple(lines)
