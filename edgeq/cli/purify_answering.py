"""`edgeq purify evaluate` of what names images itself: two towers, and their shield."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.cli.command import Document
from edgeq.cli.purify_show import show_answers, show_attacks
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.attacks.pipeline_report import Assault
    from edgeq.cli.purify_evaluate import Evaluate
    from edgeq.purifiers import Shielded
    from edgeq.robustness.found import Found

EVALUATION = "purify.json"
FOUND = "attacked"
SHOWN = 8  # images of the report


def evaluate_answering(command: "Evaluate", talk: Talk) -> Document:
    """Measure the accuracies on clean images, and under attack those of a shield and of its control."""
    from edgeq.cli.measure import device, load_fitting
    from edgeq.purifiers import clean_measures, load_guard

    if command.classifier is not None or command.bits or command.samples is not None:
        raise InputError(
            f"expected no --classifier, --bits or --samples with towers or a shield, got one with {command.folder}; it "
            "names images by its own model"
        )
    info, guard = load_guard(command.folder, device=device(command.device))
    method = info.config.method
    deployed = _deployed(command.folder, command) if command.against else None
    control = None if command.control is None else _deployed(command.control, command)
    if control is not None and deployed is None:
        raise InputError("expected --against with --control, got none; name ways of attack, or all")
    assault = None if deployed is None else command.assault(command.against, deployed.ways)
    spec = command.data or info.config.data
    dataset = load_fitting(spec, method.classes, info.image_shape)  # type: ignore[union-attr]
    with talk.busy(f"measuring {len(dataset.test)} test images"):
        measured = clean_measures(guard, dataset.test)
    show_answers(talk, command.folder, measured)
    document: dict[str, Any] = {"run": str(command.folder), "kind": method.kind, "data": spec, "clean": measured}
    document |= {"not_exportable": guard.not_exportable()}
    if deployed is not None and assault is not None:
        part = command.part(dataset)
        document["attacks"] = _attacked(talk, command.folder, deployed, part, assault)
        if control is not None:
            ways = tuple(way for way in assault.ways if way in control.ways)
            aimed = command.assault(ways, control.ways)
            document["control"] = {"run": str(command.control)} | _attacked(
                talk, command.control or Path(), control, part, aimed
            )
    if not command.data:
        keep(command.folder, {name: document[name] for name in document if name not in ("run", "not_exportable")})
    return document


def _deployed(folder: Path, command: "Evaluate") -> "Shielded":
    from edgeq.cli.measure import device
    from edgeq.purifiers import load_guard, shielded
    from edgeq.purifiers.guarded import GuardedTowers

    info, guard = load_guard(folder, device=device(command.device))
    if not isinstance(guard, GuardedTowers):
        raise InputError(
            f"expected a run of kind shield to attack, got one of {info.config.method.kind} in {folder}; train one "
            "with edgeq purify train --kind shield --start RUN"
        )
    return shielded(guard)


def _attacked(
    talk: Talk, folder: Path, deployed: "Shielded", part: tuple[Any, Any], assault: "Assault"
) -> dict[str, Any]:
    """Attack a shield in all ways, in the usual one, and without its shield."""
    from edgeq.attacks.pipeline_report import bare_accuracy, published_accuracy, withstood

    with talk.line(str(folder)) as line:
        kept = found_in(folder, folder, assault, part, shield=True)
        document = withstood(deployed, *part, assault, progress=line.show, kept=kept)
        line.show("the published way")
        published = published_accuracy(deployed, *part, assault)
        bare = bare_accuracy(deployed, *part, assault)
    for row in document["rows"]:
        row |= {"published": published[row["eps"]], "bare": bare[row["eps"]]}
    show_attacks(talk, document, str(folder))
    return document


def found_in(folder: Path, run: Path, assault: "Assault", part: tuple[Any, Any], **parts: Any) -> "Found":
    """Return where a run's attacked images are kept.

    Args:
        folder: Run folder of the purifier or the shield.
        run: Run folder of what names the images.
        assault: What is tried.
        part: Images and labels.
        parts: What else the images depend on.
    """
    from dataclasses import asdict

    from edgeq.files import sha256
    from edgeq.robustness.found import Found
    from edgeq.robustness.store import fingerprint
    from edgeq.runs import RESULTS, WEIGHTS

    weights = [sha256(place / WEIGHTS) for place in (folder, run)]
    labels = fingerprint({"labels": part[1]})
    parts |= {"weights": weights, "effort": asdict(assault.effort), "seed": assault.seed, "labels": labels}
    return Found(folder / RESULTS / FOUND, parts)


def keep_samples(folder: Path, purifier: Any, test: Any) -> None:
    """Write some test images and what becomes of them into the run's results, for the report."""
    import torch

    from edgeq.data import batches
    from edgeq.files import save_tensors
    from edgeq.purifiers import Draw
    from edgeq.purifiers.base import to_bytes
    from edgeq.purifiers.folders import SAMPLES
    from edgeq.runs import RESULTS

    images = next(batches(test, min(SHOWN, len(test)), device=str(next(purifier.parameters()).device)))[0]
    with torch.no_grad():
        made = to_bytes(purifier(images, draw=Draw(0)))
    save_tensors(folder / RESULTS / SAMPLES, {"images": images.cpu(), "purified": made.cpu()})


def keep(folder: Path, body: dict[str, Any]) -> None:
    """Write what was found into the run's results, beside what was found of other classifiers or in other ways.

    Rows of a classifier at a width replace former ones. What was measured on other weights is forgotten.
    """
    from edgeq.files import read_json, sha256, write_json
    from edgeq.runs import RESULTS, WEIGHTS

    path = folder / RESULTS / EVALUATION
    body = {"weights_sha256": sha256(folder / WEIGHTS), **body}
    before = read_json(path) if path.exists() else {}
    if not isinstance(before, dict) or before.get("weights_sha256") != body["weights_sha256"]:
        before = {}
    for name in ("results", "attacks"):
        rows, others = body.get(name), before.get(name)
        if isinstance(rows, list) and isinstance(others, list):
            own = {(row["classifier"], row["bits"]) for row in rows}
            body[name] = [row for row in others if (row.get("classifier"), row.get("bits")) not in own] + rows
    write_json(path, {**before, **body})
