"""`edgeq audit`: how much of a model really runs in integers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from edgeq.cli.command import AbstractCommand, Document, Failed
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.export.audit import Audit as Result

Shapes = Annotated[tuple[str, ...], arg(metavar="NAME=1,3,224,224 …", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Audit(AbstractCommand):
    """Count the multiplications and additions that ONNX Runtime runs in integers; say what keeps the rest in float.

    Of a TensorRT engine, the same from the layers.json that trtexec --exportLayerInfo writes.

    Attributes:
        model: An artefact folder, an ONNX file of any tool, or TensorRT's report of layers as .json.
        shapes: Shapes of inputs that have other free axes than the batch.
        strict: Fail (exit code 2) unless all of it runs in integers.
    """

    model: Positional[Annotated[Path, arg(metavar="ART|FILE")]]
    shapes: Shapes = ()
    strict: bool = False

    def run(self, talk: Talk) -> Document:
        """Audit; with --strict a float island is a failure."""
        from edgeq.export import load
        from edgeq.export.audit import audit

        with talk.busy(f"reading {self.model}" if self.model.suffix == ".json" else f"optimising {self.model}"):
            result = audit(self.model, shapes=dict(_shape(text) for text in self.shapes))
        talk.table(
            f"{self.model}: integer kernels on {result.engine}",
            ("", "in integers", "of all", "share"),
            [
                ("multiplications", str(result.integer_macs), str(result.macs), f"{result.macs_percent:.1f} %"),
                ("additions", str(result.integer_adds), str(result.adds), f"{result.adds_percent:.1f} %"),
            ],
        )
        if self.model.is_dir() and load(self.model).manifest["target"] == "trt":
            talk.note("the model is written for TensorRT; this is what another engine, ONNX Runtime, makes of it")
        _explain(result, talk)
        document = {"model": str(self.model), **result.as_dict()}
        if self.strict and not result.integer:
            raise Failed(
                f"expected {self.model} to run in integers, got {result.macs_percent:.1f} % of the multiplications, "
                f"{result.adds_percent:.1f} % of the additions and {len(result.islands)} islands in float; see above",
                document,
            )
        return document


def _explain(result: "Result", talk: Talk) -> None:
    if result.refused:
        talk.note(f"{result.engine} refuses to fuse this model: {result.refused}")
    if result.uncounted:
        talk.note(f"not counted: the multiplications in {', '.join(result.uncounted)}")
    for island in result.islands:
        kinds = ", ".join(f"{count} {kind}" for kind, count in island.kinds.items())
        talk.note(
            f"float: {kinds} from {island.operators[0]} on ({island.macs} multiplications, {island.adds} additions)"
        )
        for cause in island.causes:
            more = f" (and {cause.count - 1} more like it)" if cause.count > 1 else ""
            talk.note(f"  {cause.operator}{more}: {cause.reason}; {cause.change}")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    parts = sizes.split(",")
    if not name or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"expected a shape such as image=1,3,224,224, got {text!r}; name the input and its sizes")
    return name, tuple(int(part) for part in parts)
