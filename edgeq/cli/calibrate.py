"""`edgeq calibrate`: post-training quantization, of a run or of float weights from elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from edgeq.cli.command import AbstractCommand, AllWidths, Document, Folder, MaybeData, MaybeFile, MaybeNumbers
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.data import Dataset
    from edgeq.quant.layer_bits import Bits
    from edgeq.quant.network import MultiBitNet
    from edgeq.runs import RunInfo

WIDTHS = (32, 8, 5, 4, 2)
CHANNELS = 3  # images that `edgeq.data` reads are RGB


@dataclass(frozen=True, kw_only=True)
class Calibrate(AbstractCommand):
    """Choose ranges from images, without training, and write a new run folder.

    Either a run: edgeq calibrate RUN --out RUN2
    or float weights: edgeq calibrate --model M --weights FILE.safetensors --mean X --std X --data D --out RUN2

    Attributes:
        folder: A run folder; its weights stay, the ranges of --bits are chosen anew.
        out: Run folder to make.
        method: How a range is chosen.
        bits: Widths; a run gets those that it does not have yet. Default: those of --layer-bits, the run's, or
            32 8 5 4 2.
        layer_bits: File with bits of single layers, .toml or .json; edgeq sensitivity --search writes one.
        images: Training images to look at.
        passes: What improves the result, always in the order equalise, rounding, bias.
        per_tensor: One weight step for a whole layer, as some hardware wants it, instead of one for each channel.
        sequential: Look at each edge after those before it were rounded, with the width's own BatchNorm: for networks
            that were trained at several widths. One pass per width.
        model: Network of the float weights, as for edgeq train.
        weights: A float state dict as safetensors.
        mean: Of float weights: they were trained on x = (pixel / 255 - mean) / std; one number, or one per channel.
        std: Of float weights: see mean.
        data: Data of the float weights, or other data for a run.
    """

    folder: Positional[Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")]] = None
    out: Folder
    method: Literal["minmax", "percentile", "entropy", "mse"] = "mse"
    bits: AllWidths = ()
    layer_bits: MaybeFile = None
    images: int = 512
    per_tensor: bool = False
    sequential: bool = False
    passes: tuple[Literal["equalise", "rounding", "bias"], ...] = ()
    model: Annotated[str, arg(metavar="STR", help_behavior_hint="")] = ""
    weights: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    mean: MaybeNumbers = ()
    std: MaybeNumbers = ()
    data: MaybeData = ""

    def run(self, talk: Talk) -> Document:
        """Calibrate, measure, write."""
        self._check()
        with talk.busy("loading torch"):
            from edgeq import calib, runs
            from edgeq.cli.measure import record_accuracies
            from edgeq.files import new_folder, write_json
        _check_new(self.out)
        info, net, dataset = self._from_run() if self.folder is not None else self._from_weights()
        images = some_images(dataset, self.images)
        named = tuple(self._layer_bits()) if self.folder is not None else ()
        widths = tuple(b for b in dict.fromkeys((*self.bits, *named) or net.bits) if b != 32)
        with talk.busy(f"calibrating {', '.join(map(str, widths))} bits by {self.method} on {len(images)} images"):
            report = calib.calibrate(
                net,
                images,
                method=calib.method(self.method),
                bits=widths,
                weights="mse-tensor" if self.per_tensor else "mse",
                sequential=self.sequential,
                passes=self.passes,
            )
        with new_folder(self.out) as folder:
            runs.write_info(folder, info)
            runs.save_weights(folder, net)
            write_json(folder / runs.RESULTS / "calibrate.json", report.to_dict())
        results = record_accuracies(talk, self.out, net, dataset)
        choices: dict[str, object] = {"method": report.method, "per_tensor": self.per_tensor, "images": report.images}
        choices["sequential"] = report.sequential
        effects = [
            {"pass": p.name, "bits": p.bits, "sqnr_db_before": p.sqnr_db_before, "sqnr_db_after": p.sqnr_db_after}
            for p in report.passes
        ]
        return {"run": str(self.out), **choices, "bits": list(widths), "passes": effects, "results": results}

    def _layer_bits(self) -> "dict[int, dict[str, Bits]]":
        from edgeq.quant.layer_bits import read_layer_bits

        return {} if self.layer_bits is None else read_layer_bits(self.layer_bits)

    def _check(self) -> None:
        floats = [self.model, self.weights]
        if self.folder is not None and any((*floats, self.mean, self.std)):
            raise InputError("expected a run, or --model with --weights, --mean and --std, got both; drop one of them")
        if self.folder is None and not (all(floats) and self.data):
            raise InputError(
                "expected a run, or --model with --weights and --data, got neither in full; name a run folder"
            )
        if self.folder is None and not (self.mean and self.std):
            raise InputError(
                "expected --mean and --std of the pixels that the weights were trained on, got none; 0 and 1 where the "
                "network takes pixels from 0 to 1, 0.485 0.456 0.406 and 0.229 0.224 0.225 for torchvision's weights"
            )
        if self.folder is None:
            from edgeq.pixels import Pixels

            Pixels(self.mean, self.std).check(CHANNELS)
        if self.images < 2:
            raise InputError(f"expected at least 2 images, got {self.images}; some hundred are enough")

    def _from_run(self) -> "tuple[RunInfo, MultiBitNet, Dataset]":
        import dataclasses

        from edgeq.cli.measure import load_fitting
        from edgeq.runs import load_run, requantized

        assert self.folder is not None
        info, net = load_run(self.folder)
        spec = self.data or info.data
        dataset = load_fitting(spec, info.classes, info.image_shape)
        training = {
            **info.training,
            "calibrated": {"run": str(self.folder), "method": self.method, "images": self.images},
        }
        named = self._layer_bits()
        quant = dataclasses.replace(
            info.quant,
            bits=tuple({*info.quant.bits, *self.bits, *named}),
            layer_bits={**info.quant.layer_bits, **named},
        )
        info = dataclasses.replace(info, quant=quant, data=spec, training=training)
        return info, requantized(info, net), dataset

    def _from_weights(self) -> "tuple[RunInfo, MultiBitNet, Dataset]":
        from edgeq.data import ImageFiles, load
        from edgeq.models import build
        from edgeq.pixels import Pixels
        from edgeq.quant.convert import multibit
        from edgeq.quant.network import QuantConfig
        from edgeq.runs import RunInfo

        assert self.weights is not None
        named = self._layer_bits()
        quant = QuantConfig(bits=tuple({*(self.bits or WIDTHS), *named}), layer_bits=named)
        dataset = load(self.data, seed=0)
        train = dataset.train
        side = train.image_size if isinstance(train, ImageFiles) else int(train.images.shape[2])
        network = build(self.model, classes=len(dataset.classes))
        _load_float(network, self.weights)
        calibrated = {"weights": str(self.weights), "method": self.method, "images": self.images}
        pixels, shape = Pixels(self.mean, self.std), (CHANNELS, side, side)
        info = RunInfo(self.model, self.data, quant, dataset.classes, shape, {"calibrated": calibrated}, pixels)
        return info, multibit(network, image_shape=shape, config=quant, pixels=pixels).eval(), dataset


def _load_float(network, path: Path) -> None:
    from edgeq.files import load_tensors

    wanted, tensors = network.state_dict(), load_tensors(path)
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # often left out, and not used here
    wrong = sorted((wanted.keys() - counters) ^ (tensors.keys() - counters)) or sorted(
        name for name, tensor in tensors.items() if wanted[name].shape != tensor.shape
    )
    if wrong:
        raise InputError(
            f"expected the state dict of this --model in {path}, got another set or shape of tensors at {wrong[0]!r} "
            f"({len(wrong)} in all); choose the model that the weights belong to"
        )
    network.load_state_dict(tensors, strict=False)


def some_images(dataset: "Dataset", count: int):
    """Return images of the training split: those that training holds out for calibration, if there are so many."""
    from edgeq.data import decoded, holdout

    part, _ = holdout(dataset.train, min(count, len(dataset.train) // 2), seed=0)
    return decoded(part)


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"expected a new or empty folder for --out, got {out}, which holds something; choose another")
