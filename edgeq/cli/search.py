"""`edgeq sensitivity --search`: bits for each layer under a budget, written as a file for train and calibrate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeq.cli.command import Document, check_writable
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from edgeq.cli.sensitivity import Sensitivity
    from edgeq.data import Dataset
    from edgeq.quant.network import MultiBitNet
    from edgeq.runs import RunInfo
    from edgeq.sensitivity import Budget, Plan, Search

BITS = (8, 6, 5, 4, 3, 2)
COLUMNS = (
    "network",
    "bytes of weights",
    "bits per weight",
    "Gbops",
    "logits dB, foretold",
    "logits dB",
    "accuracy",
    "",
)


@dataclass(frozen=True)
class Measured:
    """What a plan's network does after a calibration: SQNR of the logits on its images, accuracy on the test split."""

    logits_db: float
    accuracy: float


def check(command: "Sensitivity") -> None:
    """Refuse options that do not belong together."""
    given = [command.budget_bytes, command.budget_bops, command.budget_bits]
    if not command.search:
        if any(given) or command.out or command.measure or command.setting or command.edge_layers:
            raise InputError("expected --search with a budget, --out and the like, got none; add --search")
        return
    if sum(map(bool, given)) != 1:
        raise InputError(
            f"expected one budget, got {sum(map(bool, given))}; give --budget-bytes, --budget-bops or --budget-bits"
        )
    if command.out is None or command.out.suffix not in (".toml", ".json"):
        raise InputError(f"expected --out FILE.toml or FILE.json, got {command.out or 'none'}; name the file to write")
    check_writable(command.out, "--out")
    if command.setting and not 2 <= command.setting <= 8:
        raise InputError(
            f"expected --setting from 2 to 8, got {command.setting}; it is the width to call the result by"
        )


def budget_of(command: "Sensitivity") -> "Budget":
    """Return the budget that the options name: a number, or for bytes and bops a share like 40%."""
    from edgeq.sensitivity import Budget

    if command.budget_bits:
        return Budget("bits", _number("bits", command.budget_bits))
    kind, text = ("bytes", command.budget_bytes) if command.budget_bytes else ("bops", command.budget_bops)
    if text.endswith("%"):
        return Budget(kind, _number(kind, text[:-1]) / 100, share=True)
    return Budget(kind, _number(kind, text))


def run_search(command: "Sensitivity", talk: Talk) -> Document:
    """Measure the layers, search, show, write the file."""
    with talk.busy("loading torch"):
        from edgeq.cli.calibrate import some_images
        from edgeq.cli.measure import device, load_fitting
        from edgeq.quant.layer_bits import write_layer_bits
        from edgeq.runs import load_run
        from edgeq.sensitivity import layer_noises, nearest_setting, search
    budget, bits = budget_of(command), command.bits or BITS
    info, net = load_run(command.folder, device=device(command.device))
    dataset = load_fitting(command.data or info.data, info.classes, info.image_shape)
    images = some_images(dataset, command.images)
    with talk.share("measuring") as progress:
        layers = layer_noises(net, images, bits=tuple(sorted(set(bits), reverse=True)), progress=progress)
    alike = command.activations == "same"
    found = search(layers, budget, edge_bits=info.quant.edge_bits, ends=command.edge_layers, alike=alike)
    setting = command.setting or nearest_setting(found.mixed)
    measured: dict[str, Measured] = {}
    if command.measure:
        for plan in compared(found):
            with talk.busy(f"calibrating and measuring: {plan.name}"):
                measured[plan.name] = _measured(info, net, plan, (setting, images, dataset))
    best = chosen(found, measured)
    _show(talk, command.folder, found, measured)
    assert command.out is not None
    write_layer_bits(command.out, {setting: best.layers}, remark=_remark(command.folder, best, budget))
    if best is not found.mixed:
        talk.note(f"{best.name} everywhere did better than mixed bits here, so {command.out} holds that")
    talk.note(f"next: edgeq calibrate {command.folder} --layer-bits {command.out} --out NEW (or edgeq train)")
    rows = [_row(plan, measured.get(plan.name)) for plan in (found.mixed, *found.uniform)]
    return {
        "run": str(command.folder),
        "data": command.data or info.data,
        "images": len(images),
        "budget": {**asdict(budget), "limit": found.limit},
        "out": str(command.out),
        "setting": setting,
        "written": best.name,
        "exact": found.exact,
        "networks": rows,
        "layers": [asdict(layer) for layer in layers],
    }


def compared(found: "Search") -> tuple["Plan", ...]:
    """Return the mixed plan and, of each family of uniform ones, the best within the budget and the next beyond."""
    plans = [found.mixed]
    for family in (False, True):
        some = [p for p in found.uniform if (", " in p.name) == family]
        within, beyond = [p for p in some if p.within], [p for p in some if not p.within]
        plans += within[:1] + beyond[-1:]  # they go from many bits to few
    return tuple(plans)


def chosen(found: "Search", measured: Mapping[str, Measured]) -> "Plan":
    """Return the plan within the budget with the best logits, as measured; the mixed one where nothing was."""
    within = [p for p in (found.mixed, *found.uniform) if p.within and p.name in measured]
    return max(within, key=lambda p: measured[p.name].logits_db, default=found.mixed)


def _measured(info: "RunInfo", net: "MultiBitNet", plan: "Plan", how: "tuple[int, Tensor, Dataset]") -> Measured:
    """Calibrate a plan's network from the run's float weights and measure it in the deployed arithmetic.

    The logits are compared with those of the float network whose BatchNorm was measured on the same images, as the
    calibrated width's was; else that difference, which is no noise of rounding, would hide all others.
    """
    import copy
    from dataclasses import replace

    import torch

    from edgeq.calib import calibrate, reestimate
    from edgeq.calib.batchnorm import has_own_norms
    from edgeq.calib.passes import float_logits
    from edgeq.calib.walk import evaluating, float_source
    from edgeq.evaluate import accuracies
    from edgeq.runs import requantized
    from edgeq.sensitivity.sums import decibels

    setting, images, dataset = how
    place = next(net.parameters()).device
    made = requantized(replace(info, quant=plan.config(info.quant, setting)), copy.deepcopy(net)).to(place)
    calibrate(made, images, bits=(setting,))
    right = accuracies(made, dataset.test, bits=(setting,))[0]
    with evaluating(made, setting):
        got = torch.cat([made(part.to(place)) for part in images.split(100)])
    if has_own_norms(made) and float_source(made) != setting:
        reestimate(made, images, bits=float_source(made))
    expected = float_logits(made, images, batch_size=100)
    noise = float((got - expected).double().square().sum())
    return Measured(decibels(float(expected.double().square().sum()), noise), right.accuracy)


def _number(kind: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        hint = "4.5" if kind == "bits" else "20000 or 40%"
        raise InputError(f"expected a number for --budget-{kind}, got {text!r}; for example {hint}") from None


def _show(talk: Talk, folder: Path, found: "Search", measured: Mapping[str, Measured]) -> None:
    rows = []
    for plan in (found.mixed, *found.uniform):
        real = measured.get(plan.name)
        rows.append(
            (
                plan.name,
                str(plan.weight_bytes),
                f"{plan.mean_bits:.2f}",
                f"{plan.bops / 1e9:.3f}",
                f"{plan.decibels:.1f}",
                "-" if real is None else f"{real.logits_db:.1f}",
                "-" if real is None else f"{100 * real.accuracy:.2f} %",
                "" if plan.within else "beyond the budget",
            )
        )
    talk.table(f"{folder}: bits for each layer within the budget", COLUMNS, rows)


def _row(plan: "Plan", real: Measured | None) -> dict[str, Any]:
    return {
        "network": plan.name,
        "layer_bits": plan.layers,
        "weight_bytes": plan.weight_bytes,
        "mean_bits": plan.mean_bits,
        "bops": plan.bops,
        "within": plan.within,
        "foretold_logits_db": plan.decibels,
        "logits_db": None if real is None else real.logits_db,
        "accuracy": None if real is None else real.accuracy,
    }


def _remark(folder: Path, best: "Plan", budget: "Budget") -> str:
    amount = f"{100 * budget.amount:g} % of 8 bits'" if budget.share else f"{budget.amount:g}"
    return (
        f"edgeq sensitivity {folder.name} --search: {best.name}, budget {amount} {budget.kind}\n"
        f"{best.weight_bytes} bytes of weights, {best.mean_bits:.3f} bits per weight, {best.bops} bit-operations\n"
        "layer = bits, or [bits of its weights, bits of the codes that it reads]"
    )
