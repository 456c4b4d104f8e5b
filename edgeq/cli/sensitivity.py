"""`edgeq sensitivity`: which layer a width's accuracy is lost in, and a search for bits of layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from edgeq.cli.command import AbstractCommand, AllWidths, Document, MaybeData, MaybeFile
from edgeq.cli.search import check, run_search
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.sensitivity import Layer, WidthReport
    from edgeq.sensitivity import Sensitivity as Measured

Amount = Annotated[str, arg(metavar="N", help_behavior_hint="")]

KEPT = "sensitivity.json"
SHOWN = 10
COLUMNS = ("layer", "lost alone", "images", "lost left out", "logits dB", "own dB", "output dB", "weights dB", "beyond")


@dataclass(frozen=True, kw_only=True)
class Sensitivity(AbstractCommand):
    """Find the layers that a width loses its accuracy in: each quantized alone, and each alone left in real numbers.

    With --search: find bits for each layer within a budget, and write them to --out.

    Attributes:
        folder: A run folder.
        bits: Widths to look at; with --search the bits to choose from, 8 6 5 4 3 2 by default.
        images: Test images to look at (with --search training images), drawn at random; the same ones each time.
        data: Look at other data with the same classes. Default: what the network was trained on.
        device: Where to run the network.
        search: Find bits for each layer that make the least noise within a budget.
        budget_bytes: Bytes of packed weights; or 40% of what they are with 8 bits everywhere.
        budget_bops: Multiplications x bits of weights x bits of codes, for one image; or 40% of those with 8 bits.
        budget_bits: Mean bits of a weight.
        out: File to write, .toml or .json, for --layer-bits of edgeq train and edgeq calibrate.
        setting: Width to call the result by. Default: the one next to the mean bits of its weights.
        edge_layers: Choose the bits of the first and the last layer too, which else keep theirs.
        activations: Choose the bits of a layer's codes apart from those of its weights, or give both the same.
        measure: Calibrate what was found, and uniform networks about as large, and measure all of them.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    bits: AllWidths = ()
    images: int = 500
    data: MaybeData = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    search: bool = False
    budget_bytes: Amount = ""
    budget_bops: Amount = ""
    budget_bits: Amount = ""
    out: MaybeFile = None
    setting: Annotated[int, arg(metavar="B", help_behavior_hint="")] = 0
    edge_layers: bool = False
    activations: Literal["free", "same"] = "free"
    measure: bool = False

    def run(self, talk: Talk) -> Document:
        """Measure, show, keep; or search."""
        least = 2 if self.search else 1
        if self.images < least:
            raise InputError(
                f"expected {least} image{'s' * (least > 1)} or more, got {self.images}; some hundred are enough"
            )
        check(self)
        if self.search:
            return run_search(self, talk)
        with talk.busy("loading torch"):
            from edgeq.cli.measure import check_widths, device, load_fitting
            from edgeq.data import holdout
            from edgeq.files import write_json
            from edgeq.runs import RESULTS, load_run
            from edgeq.sensitivity import measure
        info, net = load_run(self.folder, device=device(self.device))
        bits = check_widths(self.bits, net.quantized_bits())
        dataset = load_fitting(self.data or info.data, info.classes, info.image_shape)
        split = dataset.test
        if self.images < len(split):
            split, _ = holdout(split, self.images, seed=0)
        with talk.share("measuring") as progress:
            result = measure(net, split, bits=bits or None, progress=progress)
        for width in result.widths:
            _show(talk, self.folder, result, width)
        body: dict[str, Any] = {"run": str(self.folder), "data": self.data or info.data, **result.to_dict()}
        if not self.data:
            write_json(self.folder / RESULTS / KEPT, body)
        return body


def _show(talk: Talk, folder: Path, result: "Measured", width: "WidthReport") -> None:
    order = width.worst_first()
    title = (
        f"{folder} at {width.bits} bits: {100 * width.correct / result.images:.1f} % "
        f"({'float' if result.reference == 32 else 'unrounded'}: {100 * result.correct / result.images:.1f} %)"
    )
    if len(order) > SHOWN:
        title += f"; the worst {SHOWN} of {len(order)} units, all in the JSON"
    talk.table(title, COLUMNS, [_cells(layer, result.images) for layer in order[:SHOWN]])
    talk.note(_words(order[0], result.images))


def _cells(layer: "Layer", images: int) -> tuple[str, ...]:
    return (
        layer.name,
        f"{100 * layer.alone.net / images:.1f}",
        f"-{layer.alone.lost} +{layer.alone.gained}",
        f"{100 * layer.left_out.net / images:.1f}",
        f"{layer.logits_db:.1f}",
        f"{layer.own_db:.1f}",
        f"{layer.output_db:.1f}",
        "-" if layer.weight_db is None else f"{layer.weight_db:.1f}",
        "-" if layer.saturated is None else f"{100 * layer.saturated:.1f} %",
    )


def _words(layer: "Layer", images: int) -> str:
    """Say which unit stands out, or that none does."""
    if not layer.alone.clear:
        return "no unit alone costs more images than chance would"
    text = f"{layer.name} alone costs {100 * layer.alone.net / images:.1f} points"
    if layer.saturated is not None and layer.saturated > 0.01:
        text += f", with {100 * layer.saturated:.1f} % of its results beyond the codes"
    first = layer.worst[0]
    text += f"; its worst channel is {first.channel} ({first.own_db:.1f} dB"
    if first.weight_max is not None and first.layer_weight_max is not None:
        text += f", weights up to {first.weight_max:.3g} of the layer's {first.layer_weight_max:.3g}"
    return text + ")"
