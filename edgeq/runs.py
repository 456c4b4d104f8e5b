"""The run folder: what training writes and every other command reads.

config.json          what was asked for, the classes, the image shape, versions
weights.safetensors  the trained network
metrics.jsonl        one line an epoch
state/               what --resume needs
results/*.json       what the other commands measured
"""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeq import __version__
from edgeq.calib.batchnorm import copy_norms
from edgeq.errors import InputError, shortened
from edgeq.files import load_tensors, read_json, save_tensors, write_json, write_text
from edgeq.models import build
from edgeq.pixels import OWN, Pixels
from edgeq.quant import layer_bits
from edgeq.quant.convert import multibit
from edgeq.quant.correction import make_room
from edgeq.quant.network import MultiBitNet, QuantConfig

CONFIG, WEIGHTS, METRICS, STATE, RESULTS = "config.json", "weights.safetensors", "metrics.jsonl", "state", "results"
EVALUATION = "evaluate.json"
FORMAT = 1
TEXT, OBJECT, LIST = (str, "a text"), (dict, "an object"), (list, "a list")
FIELDS = {"model": TEXT, "data": TEXT, "quant": OBJECT, "classes": LIST, "image_shape": LIST, "training": OBJECT}
LONGEST_SIDE = 1 << 15  # pixels; beyond any image, and short of what makes torch overflow


@dataclass(frozen=True)
class RunInfo:
    """What a run folder says about itself.

    Attributes:
        model: Name for `edgeq.models.build`.
        data: Data specification that it was trained on.
        quant: How the network is quantized.
        classes: Class names, in label order.
        image_shape: (channels, height, width).
        training: All training choices, as written in config.json.
        pixels: What the network was trained on, see `multibit`.
    """

    model: str
    data: str
    quant: QuantConfig
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    training: dict[str, Any]
    pixels: Pixels = OWN


def versions() -> dict[str, str]:
    """Return the versions that a number depends on."""
    return {"edgeq": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """Return the machine that a number depends on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"machine": platform.machine(), "cpu_threads": torch.get_num_threads(), "cuda": device}


def write_info(folder: Path, info: RunInfo) -> None:
    """Write config.json; refuse a folder with damaged metrics, to which a training could add nothing."""
    read_metrics(folder)
    body = {
        "format": FORMAT,
        "model": info.model,
        "data": info.data,
        "quant": info.quant.plain(),
        "classes": list(info.classes),
        "image_shape": list(info.image_shape),
        "training": info.training,
        "pixels": {"mean": list(info.pixels.mean), "std": list(info.pixels.std)},
        "versions": versions(),
        "hardware": hardware(),
    }
    write_json(folder / CONFIG, body)


def read_info(folder: Path) -> RunInfo:
    """Read config.json, or say what is wrong with the folder."""
    if folder.is_file():
        raise InputError(f"expected a run folder, got the file {folder}; name the folder that holds it")
    if not folder.is_dir():
        raise InputError(f"expected a run folder, got {folder}, which is not there; train one with edgeq train --out")
    body = read_json(folder / CONFIG)
    if isinstance(body, dict) and "purifier" in body:
        raise InputError(f"expected a classifier's run in {folder}, got a purifier's; edgeq export and purify take it")
    try:
        if body["format"] != FORMAT:
            raise InputError(
                f"expected run format {FORMAT} in {folder}, got {body['format']}; use the edgeq that made it"
            )
        _check_fields(body, folder)
        quant = body["quant"]
        named = layer_bits.checked(quant.get("layer_bits", {}))
        quant = QuantConfig(**{**quant, "bits": tuple(quant["bits"]), "layer_bits": named})
        channels, height, width = body["image_shape"]
        shape = (channels, height, width)
        pixels = Pixels(**{name: tuple(body["pixels"][name]) for name in ("mean", "std")}) if "pixels" in body else OWN
        return RunInfo(body["model"], body["data"], quant, tuple(body["classes"]), shape, body["training"], pixels)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"expected a run's config.json in {folder}, got one without or with a wrong {error}; train the run again"
        ) from error


def _check_fields(body: dict[str, Any], folder: Path) -> None:
    """Refuse values of another kind than `write_info` writes; a missing field is a KeyError."""
    wrong = [
        f"{name} as {words}, got {shortened(value)}"
        for name, (kind, words) in FIELDS.items()
        if not isinstance(value := body[name], kind)
    ]
    wrong += [
        f"{name} as an object, got {shortened(body[name])}"
        for name in ("versions", "hardware", "pixels")
        if not isinstance(body.get(name, {}), dict)
    ]
    if not wrong:
        classes, shape, quant = body["classes"], body["image_shape"], body["quant"]
        if not classes or not all(isinstance(name, str) for name in classes):
            wrong.append(f"classes as one name or more, got {shortened(classes)}")
        if len(shape) != 3 or not all(type(size) is int and 0 < size <= LONGEST_SIDE for size in shape):
            wrong.append(f"image_shape as channels, height and width, got {shortened(shape)}")
        numbers = [*quant["bits"], quant.get("edge_bits", 0)]
        if not all(type(number) is int for number in numbers) or type(quant.get("full_range", False)) is not bool:
            wrong.append(f"whole numbers and a yes or no in quant, got {shortened(quant)}")
    if wrong:
        raise InputError(f"expected in {folder / CONFIG} {wrong[0]}; the file is damaged, train the run again")


def new_network(info: RunInfo) -> MultiBitNet:
    """Return the run's network, untrained, or say that it does not name one of the run's classes."""
    model = build(info.model, classes=len(info.classes))
    net = multibit(model, image_shape=info.image_shape, config=info.quant, pixels=info.pixels)
    if net.output_shape != (len(info.classes),):
        raise InputError(
            f"expected {len(info.classes)} logits for an image from {info.model!r}, one for each class, got the shape "
            f"{net.output_shape}; a network with another output goes through multibit, calibrate, lower and save in "
            "Python"
        )
    return net


def save_weights(folder: Path, net: MultiBitNet) -> None:
    """Write weights.safetensors."""
    save_tensors(folder / WEIGHTS, {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()})


def load_run(folder: str | Path, *, device: str = "cpu") -> tuple[RunInfo, MultiBitNet]:
    """Return a run's description and its trained network, in evaluation mode."""
    folder = Path(folder)
    info = read_info(folder)
    if not (folder / WEIGHTS).exists():
        hint = "resume it with edgeq train --resume" if (folder / STATE).exists() else "train it first"
        raise InputError(f"expected {WEIGHTS} in {folder}, got none: the run has not finished; {hint}")
    net = new_network(info)
    load_into(net, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return info, net.to(device).eval()


def requantized(info: RunInfo, net: MultiBitNet) -> MultiBitNet:
    """Return a run's network in the form of `info.quant`, a different one; `net` itself where nothing differs.

    Widths that are new, or whose layers get other bits, start from the BatchNorm of the highest old one; they still
    have to be calibrated.
    """
    if info.quant == net.config:
        return net
    wide = new_network(info)
    make_room(wide, net.state_dict())
    wide.load_state_dict(net.state_dict(), strict=False)  # what is missing belongs to the new widths
    named = info.quant.layer_bits
    changed = [b for b in named if named[b] != net.config.layer_bits.get(b)]
    source = max(net.bits)
    for bits in sorted({*wide.bits, *changed} - ({*net.bits} - {*changed}) - {source}):
        copy_norms(wide, source=source, target=bits)
    return wide.eval()


def load_into(net: MultiBitNet, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Copy tensors into a network, or say which do not fit, or hold what no training leaves behind."""
    make_room(net, tensors)
    wanted = net.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys()) or sorted(
        name
        for name, tensor in wanted.items()
        if tensors[name].shape != tensor.shape or tensors[name].is_floating_point() != tensor.is_floating_point()
    )
    if wrong:
        raise InputError(
            f"expected the tensors of this network in {source}, got a different set or shape at {wrong[0]!r} "
            f"({len(wrong)} in all); config.json and weights do not belong together"
        )
    check_numbers(tensors, source)
    net.load_state_dict(tensors)


def check_numbers(tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Refuse tensors with a number that is not finite, as float32 holds it, and variances below 0."""
    for name, tensor in tensors.items():
        numbers = tensor.float()
        variance = name.endswith("running_var")
        if not bool(torch.isfinite(numbers).all()) or (variance and bool((numbers < 0).any())):
            kind = "finite numbers of 0 or more" if variance else "finite numbers"
            raise InputError(
                f"expected {kind} in {name!r} of {source}, got others; the file is damaged, train the run again"
            )


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl; lines of epochs from this one on (left by a killed run) are dropped."""
    kept = [json.dumps(before) for before in read_metrics(folder) if before["epoch"] < line["epoch"]]
    write_text(folder / METRICS, "\n".join([*kept, json.dumps(line)]) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, none where there is no file, or say what is wrong with it."""
    path = folder / METRICS
    if not path.exists():
        return []
    try:
        lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"expected one JSON object a line in {path}, got '{error}'; remove the damaged file"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or type(line.get("epoch")) is not int:
            raise InputError(
                f"expected an object with a whole number as epoch in line {number} of {path}, got {shortened(line)}; "
                "remove the damaged file"
            )
    return lines


def read_evaluation(folder: Path) -> list[dict[str, Any]]:
    """Return the accuracy of each width that `edgeq evaluate` measured, none where it did not run."""
    path = folder / RESULTS / EVALUATION
    if not path.exists():
        return []
    body = read_json(path)
    rows = body.get("results") if isinstance(body, dict) else None
    strange = [None] if not isinstance(rows, list) else [row for row in rows if not _is_accuracy(row)]
    if rows is None or strange:
        raise InputError(
            f"expected results with bits and accuracy in {path}, got {shortened(strange[0])}; remove the damaged file "
            "and run edgeq evaluate again"
        )
    return rows


def _is_accuracy(row: object) -> bool:
    return isinstance(row, dict) and type(row.get("bits")) is int and isinstance(row.get("accuracy"), int | float)
