"""`edgeq report`: one self-contained HTML page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from edgeq.cli.command import AbstractCommand, Document, check_writable
from edgeq.cli.talk import Talk


@dataclass(frozen=True, kw_only=True)
class Report(AbstractCommand):
    """Write one self-contained HTML page about runs and artefacts: accuracy, size, latency, training and proof.

    It measures nothing: evaluate and bench first. What they measured is found in the run, also for its artefacts.

    Attributes:
        folders: Run folders, of edgeq purify train too, and artefact folders.
        out: The page to write.
        results: JSON files of edgeq bench and edgeq evaluate from other machines.
        title: Headline.
    """

    folders: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN|ART …", help_behavior_hint="")]] = ()
    out: Annotated[Path, arg(metavar="FILE")] = Path("report.html")
    results: Annotated[tuple[Path, ...], arg(metavar="FILE …", help_behavior_hint="")] = ()
    title: str = "edgeq report"

    def run(self, talk: Talk) -> Document:
        """Collect, draw, write."""
        check_writable(self.out, "--out")
        with talk.busy("drawing"):
            from edgeq.files import write_text
            from edgeq.report import collect, collect_purifier, is_purifier, render

            guards = [folder for folder in self.folders if is_purifier(folder)]
            others = [folder for folder in self.folders if folder not in guards]
            networks = collect(others, results=self.results) if others or not guards else ()
            page = render(networks, purifiers=[collect_purifier(folder) for folder in guards], title=self.title)
            write_text(self.out, page)
        talk.note(f"wrote {self.out}")
        rows = [{"network": n.label, "widths": [row.bits for row in n.rows]} for n in networks]
        body = {"out": str(self.out), "size_bytes": len(page.encode()), "networks": rows}
        return {**body, "purifiers": [str(folder) for folder in guards]}
