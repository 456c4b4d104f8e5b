"""`edgeq transfer`: on which width a patch is made, against which width it works, and how alike the widths look."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from edgeq.cli.attacking import AbstractAttacking
from edgeq.cli.command import AllWidths, Document, MaybeData
from edgeq.cli.talk import Talk

KEPT = "robustness.json"


@dataclass(frozen=True, kw_only=True)
class Transfer(AbstractAttacking):
    """Make patches on each width, on all jointly and on a tuned copy, and let every width answer all of them.

    Finished cells are kept in the run folder: stopped, the same command goes on; repeated, it makes nothing anew.

    Attributes:
        folder: A run folder.
        bits: Widths to attack.
        data: Attack other data with the same classes. Default: what the network was trained on.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    bits: AllWidths = ()
    data: MaybeData = ""

    def run(self, talk: Talk) -> Document:
        """Attack, compare, keep."""
        with talk.busy("loading torch"):
            from edgeq.cli.attacking import attack, check_choices, perceptual_table, refuse_unequal, tables
            from edgeq.cli.measure import check_widths, load_fitting
            from edgeq.files import write_json
            from edgeq.robustness import document, doubts
            from edgeq.robustness.pictures import keep_pictures, look
            from edgeq.robustness.store import FOLDER
            from edgeq.runs import RESULTS, load_run
        check_choices(self)
        info, net = load_run(self.folder, device=self.on_device())
        bits = check_widths(self.bits, net.bits)
        self.plan().check(classes=len(info.classes), image_shape=info.image_shape)
        dataset = load_fitting(self.data or info.data, info.classes, info.image_shape)
        matrix = attack(talk, self, self.folder, net, dataset, bits)
        with talk.busy("comparing the widths"):
            rows, pictures = look(net, matrix, classes=info.classes)
            body = document(matrix, warnings=doubts(matrix, net), perceptual=rows)
        tables(talk, self.folder, body, cells=True)
        perceptual_table(talk, rows)
        whole = {"run": str(self.folder), "data": self.data or info.data, "classes": list(info.classes), **body}
        if not self.data:
            keep_pictures(self.folder / RESULTS / FOLDER, pictures)
            write_json(self.folder / RESULTS / KEPT, whole)
        refuse_unequal(body, whole)
        return whole
