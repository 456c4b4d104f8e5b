"""The artefact folder: everything a device or an auditor needs, each file with its SHA-256 in the manifest.

    model.onnx         the network for one target
    graph.json         the integer graph that the model must reproduce, ...
    graph.safetensors  ... and its packed weights
    certificate.json   the proof and the runs (`verify.py`)
    labels.json        class names, in the order of the logits
    manifest.json      what the numbers mean, versions, sizes and hashes

The folder is made under a temporary name and renamed, so that there is a whole artefact or none.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from edgeq import __version__
from edgeq.errors import InputError, shortened

from . import graphfile
from .dialects import build, dialect
from .dialects.writer import output_name
from .graph import INPUT, INPUT_ZERO, Conv, IntegerGraph, Linear

FORMAT = 1
MODEL, GRAPH, TENSORS, CERTIFICATE, LABELS = FILES = (
    "model.onnx",
    "graph.json",
    "graph.safetensors",
    "certificate.json",
    "labels.json",
)
MANIFEST = "manifest.json"
ROUNDING = "code = clamp(half_even(accumulator * m / 2^n), lo, hi); integers only, no 64-bit product needed"


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact folder whose files have the hashes that its manifest names."""

    path: Path
    manifest: Mapping[str, Any]  # Any: JSON
    graph: IntegerGraph
    model: bytes
    labels: tuple[str, ...]


def save(
    graph: IntegerGraph,
    *,
    path: str | os.PathLike[str],
    target: str = "ort",
    origin: Mapping[str, object] | None = None,
    inputs: "UInt8[np.ndarray, 'batch channels height width'] | None" = None,
) -> Path:
    """Translate the graph for a target, prove it, and write the artefact folder.

    Args:
        graph: The network.
        path: Folder to make; an artefact that is already there is replaced, any other non-empty folder refused.
        target: One of `edgeq.export.TARGETS`.
        origin: Where the network comes from (run folder, seed, commit, ...), kept in the manifest.
        inputs: Real images to compare the engines on, besides random and extreme ones.

    Raises:
        InputError: The target or the place is wrong, or the model would not compute the graph exactly.
    """
    from .verify import certify

    path = Path(path)
    check_place(path)
    model = build(graph, target).SerializeToString()
    certificate = certify(graph, model, target=target, inputs=inputs, quick=True)
    certificate.require_exact()
    record, tensors = graphfile.to_bytes(graph)
    files = {MODEL: model, GRAPH: record, TENSORS: tensors, LABELS: _json(list(labels(graph)))}
    files[CERTIFICATE] = _json(certificate.as_dict())
    _write_folder(path, files, lambda sizes: _manifest(graph, target, origin or {}, sizes))
    return path


def load(path: str | os.PathLike[str]) -> Artefact:
    """Read an artefact folder and check every hash.

    Raises:
        InputError: A file is missing or differs from what the manifest says.
    """
    from edgeq.files import read_json

    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise InputError(f"expected an artefact folder with {MANIFEST}, got {path}; make one with `edgeq export`")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("kind") != "edgeq artefact":
        raise InputError(f"expected an edgeq artefact of format {FORMAT} in {path / MANIFEST}; export the model again")
    contents = {name: _checked(path, name, manifest) for name in FILES}
    graph = graphfile.from_bytes(contents[GRAPH], contents[TENSORS])
    loaded = Artefact(path, manifest, graph, contents[MODEL], _read_labels(path, contents[LABELS]))
    _check_manifest(loaded, contents[CERTIFICATE])
    return loaded


def _read_labels(path: Path, data: bytes) -> tuple[str, ...]:
    with contextlib.suppress(ValueError):
        names = json.loads(data)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    raise InputError(f"expected a list of class names in {path / LABELS}, got something else; export the model again")


def labels(graph: IntegerGraph) -> tuple[str, ...]:
    """Return the class names, or numbers where the graph has no names; none of a network that draws."""
    if graph.draws:
        return ()
    return graph.classes or tuple(str(index) for index in range(graph.edges[graph.output].shape[0]))


def _check_manifest(loaded: Artefact, certificate: bytes) -> None:
    """Raise where the manifest, which has no hash of its own, lacks something or speaks of another graph."""
    manifest = loaded.manifest
    told = json.loads(json.dumps(_meaning(loaded.graph)))
    try:
        fits = manifest["bits"] == loaded.graph.bits and tuple(manifest["classes"]) == loaded.labels
        wrong = [name for name, value in told.items() if manifest[name] != value]
        if not manifest["runtime"]:
            raise TypeError("runtime")
        made_for = json.loads(certificate)["target"]  # a model cannot be checked as one of another dialect
        for name in ("target", "name"):
            if not isinstance(manifest[name], str):
                raise TypeError(name)
        for name, body in (("origin", manifest["origin"]), ("versions", manifest.get("versions", {}))):
            if not isinstance(body, dict):
                raise TypeError(f"{name}, {body!r} is no object")
        if not isinstance(manifest["origin"].get("data") or "", str):
            raise TypeError(f"data of its origin, {manifest['origin']['data']!r} is no text")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"expected an artefact's manifest in {loaded.path}, got one without or with a wrong {error}; the artefact "
            "is damaged, export it again"
        ) from error
    if not fits:
        raise InputError(
            f"expected {loaded.path / MANIFEST} to fit {GRAPH}, got other bits or classes; the artefact is damaged, "
            "export it again"
        )
    if wrong:
        raise InputError(
            f"expected the {wrong[0]} of {GRAPH} in {loaded.path / MANIFEST}, got {shortened(manifest[wrong[0]])}; the "
            "artefact is damaged, export it again"
        )
    if manifest["target"] != made_for:
        raise InputError(
            f"expected the target {made_for!r} of {CERTIFICATE} in {loaded.path / MANIFEST}, got "
            f"{manifest['target']!r}; the artefact is damaged, export it again"
        )


def _checked(path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    from edgeq.files import sha256

    if not (path / name).is_file():
        raise InputError(f"expected the file {path / name}, got none; the artefact is damaged, export it again")
    files = manifest.get("files")
    entry = files.get(name) if isinstance(files, dict) else None
    expected, got = entry.get("sha256") if isinstance(entry, dict) else None, sha256(path / name)
    if expected != got:
        raise InputError(
            f"expected {path / name} with SHA-256 {str(expected)[:12]}…, got {got[:12]}…; "
            "the file is damaged or was changed, export the model again"
        )
    return (path / name).read_bytes()


def check_place(path: Path) -> None:
    """Refuse a place where `save` would have to spoil something else."""
    if path.is_file() or path.is_symlink():
        raise InputError(f"expected a folder to make, got the file {path}; choose another place")
    if not path.exists():
        return
    names = {entry.name for entry in path.iterdir()}
    strangers = sorted(names - {*FILES, MANIFEST}) or sorted(names if MANIFEST not in names else ())
    if strangers:
        raise InputError(
            f"expected an empty folder or an artefact to replace, got {path} with {strangers[0]!r}; "
            "choose another place"
        )


def _write_folder(path: Path, files: Mapping[str, bytes], manifest) -> None:
    from edgeq.files import sha256, write_bytes

    path = path.absolute()
    token = secrets.token_hex(4)
    temporary, old = (path.parent / f".{path.name}.{token}.{kind}" for kind in ("tmp", "old"))
    try:
        for name, data in files.items():
            write_bytes(temporary / name, data)
        sizes = {name: {"bytes": len(data), "sha256": sha256(temporary / name)} for name, data in files.items()}
        write_bytes(temporary / MANIFEST, _json(manifest(sizes)))
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise InputError(f"expected to write {path}, got '{error.strerror}'; choose another place") from error
    finally:
        for leftover in (temporary, old):
            with contextlib.suppress(OSError):
                shutil.rmtree(leftover)


def _manifest(graph: IntegerGraph, target: str, origin: Mapping[str, object], files: Mapping) -> dict[str, object]:
    import onnx

    return {
        "kind": "edgeq artefact",
        "format": FORMAT,
        "name": graph.name,
        "bits": graph.bits,
        "target": target,
        "runtime": dialect(target).about(graph),
        **_meaning(graph),
        "classes": list(labels(graph)),
        "origin": dict(origin),
        "versions": {"edgeq": __version__, "onnx": onnx.__version__, "numpy": np.__version__},
        "files": dict(files),
    }


def _meaning(graph: IntegerGraph) -> dict[str, object]:
    """Return what the numbers mean: all that the graph alone decides."""
    edge, output = graph.edges[INPUT], graph.edges[graph.output]
    meaning = f"real logit = code * scale; the class{' of a pixel' * (len(output.shape) > 1)} is the argmax"
    if graph.draws:
        meaning = f"pixels 0...255 of an image; code = pixel - {INPUT_ZERO}, real value = code * scale as of the input"
    return {
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "layout": "NCHW",
            "channels": "RGB" if edge.shape[0] == 3 else edge.shape[0],
            "shape": ["batch", *edge.shape],
            "meaning": f"pixels 0...255; code = pixel - {INPUT_ZERO}, real value = code * scale",
            "scale": edge.scale,
        },
        "output": {
            "name": output_name(graph),
            "dtype": "uint8" if graph.draws else "int32",
            "shape": ["batch", *output.shape],
            "meaning": meaning,
            "scale": output.scale,
        },
        "rounding": ROUNDING,
        "weight_bits": {node.name: node.weight_bits for node in graph.nodes if isinstance(node, Conv | Linear)},
    }


def _json(obj: object) -> bytes:
    return (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
