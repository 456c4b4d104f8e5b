"""`edgeq export FILE.onnx`: another tool's quantized network as an artefact, beside the original."""

from typing import TYPE_CHECKING

from edgeq.cli.command import Document
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from edgeq.cli.export import Export
    from edgeq.data import Dataset
    from edgeq.export.importers import Agreement, Imported

IMAGES = 100  # test images on which the import is compared with the original
MOST = 0.25  # of a layer's codes: ties are less than 1 %, and what follows from them in later layers a few


def imported_file(command: "Export", talk: Talk) -> Document:
    """Import the file, compare it with the original, and write the artefact."""
    with talk.busy("loading onnx"):
        from edgeq.cli.artefacts import model_sha256
        from edgeq.export import load, save
        from edgeq.export.importers import agreement, onnx_original
        from edgeq.export.verify import trial_images
        from edgeq.files import sha256
    imported, data = _imported(command)
    if data is None:
        kind, images = "random", trial_images(imported.graph, None, quick=False)["random"]
    else:
        from edgeq.data import batches

        kind, images = "test", next(iter(batches(data.test, IMAGES)))[0].numpy()
    with talk.busy(f"comparing with ONNX Runtime's run of {command.folder}"):
        original = onnx_original(str(command.folder))
        price = agreement(imported, original, images)
        ties = agreement(imported, original, images, graph=imported.long)
    _check_import(command.folder, ties)
    with talk.busy(f"writing and proving {command.out}"):
        origin = {"file": command.folder.name, "file_sha256": sha256(command.folder)}
        given = images[:16] if data is not None else None
        save(imported.graph, path=command.out, target=command.target, origin=origin, inputs=given)
    artefact = load(command.out)
    _tell(talk, command, imported, price)
    row = {
        "artefact": str(command.out),
        "bits": imported.graph.bits,
        "target": command.target,
        "size_bytes": len(artefact.model),
        "model_sha256": model_sha256(artefact),
        "exact": True,
    }
    said = {
        "images": kind,
        "short": _counts(price),
        "long": _counts(ties),
        "largest_change": max(imported.change.values(), default=0.0),
        "notes": list(imported.notes),
    }
    return {"file": str(command.folder), "artefacts": [row], "import": said}


def _imported(command: "Export") -> "tuple[Imported, Dataset | None]":
    from edgeq.export.importers import import_onnx
    from edgeq.pixels import Pixels

    pixels, name = Pixels(command.mean, command.std), command.folder.stem
    imported = import_onnx(command.folder, pixels=pixels, name=name)
    if not command.data:
        return imported, None
    from edgeq.data import load

    data = load(command.data, seed=0, image_size=imported.graph.input_shape[1])
    (count,) = imported.graph.edges[imported.graph.output].shape
    if len(data.classes) != count:
        raise InputError(f"expected data of {count} classes, got {len(data.classes)}; use the network's own data")
    return import_onnx(command.folder, pixels=pixels, classes=data.classes, name=name), data


def _check_import(file: "Path", ties: "Agreement") -> None:
    """Refuse an import that computes something else: with long multipliers nothing but ties may differ."""
    for layer in ties.layers:
        if layer.differ > MOST * layer.codes or layer.distance > layer.codes:
            raise InputError(
                f"expected an import that computes what ONNX Runtime does with {file}, got other codes in "
                f"{100 * layer.differ / layer.codes:.1f} % of {layer.name!r}, by up to {layer.largest}; "
                "something in the file has a meaning that the import does not know: export it in another way"
            )


def _counts(result: "Agreement") -> dict[str, object]:
    layers = [{"layer": x.name, "codes": x.codes, "differ": x.differ, "largest": x.largest} for x in result.layers]
    total = {"codes": result.codes, "differ": result.differ, "largest": result.largest}
    return {"images": result.images, "same_class": result.same_class, **total, "layers": layers}


def _tell(talk: Talk, command: "Export", imported: "Imported", price: "Agreement") -> None:
    talk.table(
        f"{command.folder}: codes that differ from ONNX Runtime's on {price.images} images",
        ("layer", "codes", "differ", "by up to"),
        [(x.name, str(x.codes), f"{100 * x.differ / x.codes:.2f} %", str(x.largest)) for x in price.layers],
    )
    largest = max(imported.change.values(), default=0.0)
    talk.note(f"same class: {price.same_class} of {price.images}; multipliers moved by up to {100 * largest:.2f} %")
    for note in imported.notes:
        talk.note(note)
    talk.note(f"written and proved: {command.out}")
