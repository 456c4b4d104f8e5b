"""`edgeq evaluate`: accuracy and attack success per bit-width, of a run or of what was exported from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from edgeq.cli.attacking import AbstractAttacking, check_choices
from edgeq.cli.command import AllWidths, Document, MaybeData, MaybeFolder
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.data import Dataset
    from edgeq.quant.network import MultiBitNet

KEPT = "attacks.json"


@dataclass(frozen=True, kw_only=True)
class Evaluate(AbstractAttacking):
    """Measure the accuracy of a run at each width, or of an integer artefact in ONNX Runtime, on the test split.

    With --attacks also the success of patches against each width of a run; the options of attacks need it.

    Attributes:
        folder: A run folder or an artefact folder.
        bits: Widths of the run.
        data: Test on other data with the same classes. Default: what the network was trained on.
        against: For an artefact: compare every logit with this run's network too.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN|ART")]]
    bits: AllWidths = ()
    data: MaybeData = ""
    against: MaybeFolder = None

    def run(self, talk: Talk) -> Document:
        """Measure either kind of folder."""
        chosen = [
            name for name in ("surrogates", "sizes", "images", "effort", "quick", "simulated") if getattr(self, name)
        ]
        if chosen and not self.attacks:
            raise InputError(f"expected --attacks with --{chosen[0]}, got none; for example --attacks located gap")
        if (self.folder / "manifest.json").exists():
            return self._artefact(talk)
        return self._run(talk)

    def _run(self, talk: Talk) -> Document:
        if self.against is not None:
            raise InputError(f"expected an artefact to compare --against a run, got {self.folder}; leave --against out")
        with talk.busy("loading torch"):
            from edgeq.cli.measure import check_widths, load_fitting, record_accuracies
            from edgeq.runs import load_run
        if self.attacks:
            check_choices(self)
        info, net = load_run(self.folder, device=self.on_device())
        bits = check_widths(self.bits, net.bits)
        if self.attacks:
            self.plan().check(classes=len(info.classes), image_shape=info.image_shape)
        dataset = load_fitting(self.data or info.data, info.classes, info.image_shape)
        results = record_accuracies(talk, self.folder, net, dataset, bits=bits, keep=not self.data)
        whole = {"run": str(self.folder), "data": self.data or info.data, "results": results}
        return whole if not self.attacks else self._attacked(talk, net, dataset, bits, whole)

    def _attacked(
        self, talk: Talk, net: "MultiBitNet", dataset: "Dataset", bits: tuple[int, ...], whole: dict[str, Any]
    ) -> Document:
        from edgeq.cli.attacking import attack, refuse_unequal, tables
        from edgeq.files import write_json
        from edgeq.robustness import document, doubts
        from edgeq.runs import RESULTS

        matrix = attack(talk, self, self.folder, net, dataset, bits)
        body = document(matrix, warnings=doubts(matrix, net))
        tables(talk, self.folder, body, cells=False)
        whole["attacks"] = body
        if not self.data:
            write_json(self.folder / RESULTS / KEPT, body)
        refuse_unequal(body, whole)
        return whole

    def _artefact(self, talk: Talk) -> Document:
        if self.attacks:
            raise InputError(
                f"expected a run for --attacks, got the artefact {self.folder}, which has no gradients; attack its "
                "run, where the integer models answer too"
            )
        if self.bits:
            raise InputError(
                f"expected a run for --bits, got the artefact {self.folder}, which has one width; drop --bits"
            )
        with talk.busy("loading torch"):
            from edgeq.cli.artefacts import keep
            from edgeq.cli.measure import integer_row, load_fitting
            from edgeq.export import load
            from edgeq.runs import load_run
        artefact = load(self.folder)
        spec = self.data or artefact.manifest["origin"].get("data")
        if not spec:
            raise InputError(
                f"expected --data, got none, and {self.folder} does not say what it was trained on; add it"
            )
        net = load_run(self.against)[1] if self.against is not None else None
        dataset = load_fitting(spec, artefact.labels, artefact.graph.input_shape)
        with talk.busy(f"running {len(dataset.test)} test images in ONNX Runtime"):
            row = integer_row(artefact, dataset, against=net)
        if not self.data:
            keep(artefact, "integer", row)
        talk.table(
            f"{self.folder}: integer accuracy on {dataset.name}",
            ("bits", "accuracy", "right", "images", "logits unlike the network's"),
            [_cells(row)],
        )
        return {"artefact": str(self.folder), "data": spec, **row}


def _cells(row: dict) -> tuple[str, ...]:
    unlike = f"{row['mismatches']} of {row['codes']}" if row["codes"] else "not compared"
    return str(row["bits"]), f"{100 * row['accuracy']:.2f} %", str(row["correct"]), str(row["total"]), unlike
