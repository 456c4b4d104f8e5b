"""`edgeq export PURIFIER`: a trained purifier as integer-only artefacts, calibrated on its own data."""

from typing import TYPE_CHECKING, Any

from edgeq.cli.command import Document
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from edgeq.cli.export import Export
    from edgeq.purifiers import PurifierInfo

WIDTHS = (8,)
IMAGES = 512  # of the training split, to calibrate on
RESULT = "integer.json"


def exported_purifier(command: "Export", talk: Talk) -> Document:
    """Calibrate, lower and measure every width first, then write the artefacts."""
    with talk.busy("loading torch"):
        from edgeq.cli.calibrate import some_images
        from edgeq.data import load
        from edgeq.export.lower import lower
        from edgeq.files import write_json
        from edgeq.purifiers import load_purifier
        from edgeq.purifiers.integer import integer_fidelity, integer_purifier, operators
        from edgeq.quant.bits import check_bits
        from edgeq.runs import RESULTS
    widths = check_bits(command.bits or WIDTHS)
    if 32 in widths:
        raise InputError(
            "expected widths from 2 to 8 to export a purifier at, got 32, which it was trained at; drop it"
        )
    info, purifier = load_purifier(command.folder)
    operators(purifier)  # one that has no integer form is refused before anything is loaded
    places = command.places(widths)
    spec, (_, side, _) = command.data or info.config.data, info.image_shape
    dataset = load(spec, seed=0, image_size=side)
    images = some_images(dataset, IMAGES)
    with talk.busy(f"calibrating {', '.join(map(str, widths))} bits on {len(images)} images of {dataset.name}"):
        net = integer_purifier(purifier, images, bits=widths, passes=command.passes)
    name = info.config.method.kind
    graphs = {b: lower(net, bits=b, name=name) for b in widths}
    with talk.busy(f"measuring {len(dataset.test)} test images"):
        rows = [row.to_dict() for row in integer_fidelity(purifier, net, dataset.test)]
    artefacts = command.write(talk, graphs, places, lambda out: _origin(command.folder, info, out), images[:16].numpy())
    _show(talk, command.folder, rows)
    told = {"data": spec, "passes": list(command.passes), "calibrated_on": len(images), "fidelity": rows}
    if not command.data:
        write_json(command.folder / RESULTS / RESULT, told)
    return {"run": str(command.folder), "artefacts": artefacts, **told}


def _origin(run: "Path", info: "PurifierInfo", art: "Path") -> dict[str, object]:
    import os

    from edgeq.files import sha256
    from edgeq.runs import WEIGHTS

    return {
        "run": os.path.relpath(run.resolve(), art.resolve()),
        "weights_sha256": sha256(run / WEIGHTS),
        "model": info.config.method.kind,
        "data": info.config.data,
        "seed": info.config.seed,
    }


def _show(talk: Talk, folder: "Path", rows: list[dict[str, Any]]) -> None:
    cells = [
        (
            str(row["bits"]),
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.4f}",
            f"{row['psnr_to_float']:.2f}",
            "" if row["codes_agree"] is None else f"{100 * row['codes_agree']:.1f} %",
        )
        for row in rows
    ]
    head = ("bits", "PSNR, dB", "SSIM", "PSNR to the float purifier, dB", "codewords as in float")
    talk.table(f"{folder}: test images redrawn, 32 is the float purifier", head, cells)
