"""`edgeq evaluate`: accuracy and attack success per bit-width, of a run or of what was exported from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from edgeq.cli.attacking import AbstractAttacking, check_choices
from edgeq.cli.command import AllWidths, Document, MaybeCount, MaybeData, MaybeFolder
from edgeq.cli.talk import Talk
from edgeq.errors import InputError

if TYPE_CHECKING:
    from edgeq.data import Dataset
    from edgeq.purifiers import AbstractPurifier
    from edgeq.purifiers.artefact import IntegerPurifier
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
        purifier: A purifier's run folder, or an artefact exported from one: measure the images that it makes, too. To
            attack both together, use edgeq purify evaluate.
        samples: Of an alp purifier: draws whose logits are averaged (20).
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN|ART")]]
    bits: AllWidths = ()
    data: MaybeData = ""
    against: MaybeFolder = None
    purifier: MaybeFolder = None
    samples: MaybeCount = None

    def run(self, talk: Talk) -> Document:
        """Measure either kind of folder."""
        if (idle := self.idle()) and not self.attacks:
            raise InputError(f"expected --attacks with --{idle}, got none; for example --attacks located gap")
        if self.samples is not None and self.purifier is None:
            raise InputError("expected --purifier with --samples, got none; name the purifier's run")
        if self.attacks and self.purifier is not None:
            raise InputError(
                "expected --attacks without --purifier, got both; edgeq purify evaluate PURIFIER --classifier RUN "
                "--against all attacks a purifier and its classifier together"
            )
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
        purifier, samples = self._purifier()
        results = record_accuracies(talk, self.folder, net, dataset, bits=bits, keep=not self.data)
        if purifier is not None:
            from edgeq.purifiers import purified_accuracies

            with talk.busy(f"evaluating {len(dataset.test)} purified images"):
                found = purified_accuracies(purifier, net, dataset.test, bits=bits, samples=samples, seed=self.seed)
            for row, accuracy in zip(results, found, strict=True):
                row["purified_accuracy"] = accuracy.accuracy
            self._show_purified(talk, dataset.name, results)
        whole = {"run": str(self.folder), "data": self.data or info.data, "results": results}
        whole |= {} if purifier is None else {"purifier": str(self.purifier), "samples": samples}
        return whole if not self.attacks else self._attacked(talk, net, dataset, bits, whole)

    def _purifier(self) -> "tuple[AbstractPurifier | IntegerPurifier | None, int]":
        """Return the purifier, if any, and the draws to average."""
        if self.purifier is None:
            return None, 1
        from edgeq.cli.purify_evaluate import check_samples
        from edgeq.purifiers import load_purifier
        from edgeq.purifiers.artefact import is_artefact, load_integer_purifier

        if is_artefact(self.purifier):
            return load_integer_purifier(self.purifier), check_samples(self.samples, stochastic=False)
        _, purifier = load_purifier(self.purifier, device=self.on_device())
        return purifier, check_samples(self.samples, stochastic=purifier.stochastic)

    def _show_purified(self, talk: Talk, data: str, rows: list[dict[str, Any]]) -> None:
        from edgeq.cli.purify_show import show_purified

        show_purified(talk, f"{self.folder} behind {self.purifier}: accuracy on clean images of {data}", rows)

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
        purifier, samples = self._purifier()
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
        whole = {"artefact": str(self.folder), "data": spec, **row}
        if purifier is None:
            return whole
        from edgeq.integer import runner
        from edgeq.purifiers import purified_integer

        with talk.busy(f"running {len(dataset.test)} purified images in ONNX Runtime"):
            model = runner(artefact.model)
            found = purified_integer(purifier, model, dataset.test, samples=samples, seed=self.seed)
        whole["purified_accuracy"] = found.accuracy
        self._show_purified(talk, dataset.name, [whole])
        return whole | {"purifier": str(self.purifier), "samples": samples}


def _cells(row: dict) -> tuple[str, ...]:
    unlike = f"{row['mismatches']} of {row['codes']}" if row["codes"] else "not compared"
    return str(row["bits"]), f"{100 * row['accuracy']:.2f} %", str(row["correct"]), str(row["total"]), unlike
