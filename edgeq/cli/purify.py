"""`edgeq purify train|apply|evaluate`: networks that clean an image before a classifier sees it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from edgeq.cli.command import (
    AbstractCommand,
    Document,
    Failed,
    Stopped,
)
from edgeq.cli.purify_evaluate import Evaluate, check_samples
from edgeq.cli.purify_show import counting
from edgeq.cli.purify_train import Train
from edgeq.cli.talk import Talk


@dataclass(frozen=True, kw_only=True)
class Apply(AbstractCommand):
    """Purify a folder of images: names and sub-folders stay, finished images are not made again, bad files are named.

    Attributes:
        folder: A purifier's run folder, or an artefact exported from one.
        source: Folder of images.
        target: Folder for the purified ones.
        samples: alp: draws whose images are averaged.
        png: Write PNG whatever the format was; JPEG blurs what the purifier made a little.
        seed: alp: decides the noise.
        device: Where to purify.
    """

    folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    source: Positional[Annotated[Path, arg(metavar="IN")]]
    target: Positional[Annotated[Path, arg(metavar="OUT")]]
    samples: int = 1
    png: bool = False
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def run(self, talk: Talk) -> Document:
        """Purify what is not there yet."""
        with talk.busy("loading torch"):
            from edgeq.cli.measure import device
            from edgeq.purifiers import load_purifier
            from edgeq.purifiers.apply import apply_folder, weights_of
            from edgeq.purifiers.artefact import is_artefact, load_integer_purifier
        if is_artefact(self.folder):
            purifier = load_integer_purifier(self.folder)
            check_samples(self.samples, stochastic=False)
        else:
            _, purifier = load_purifier(self.folder, device=device(self.device))
            check_samples(self.samples, stochastic=purifier.stochastic)
        try:
            with counting(talk) as show:
                applied = apply_folder(
                    purifier,
                    self.source,
                    self.target,
                    weights=weights_of(self.folder),
                    samples=self.samples,
                    seed=self.seed,
                    png=self.png,
                    progress=show,
                )
        except KeyboardInterrupt:
            raise Stopped(f"stopped; what is finished is in {self.target}", again=()) from None
        for message in applied.bad:
            talk.note(message)
        talk.note(f"{applied.done} images purified into {self.target}, {applied.kept} were there already")
        document = {"run": str(self.folder), "source": str(self.source), "target": str(self.target)}
        document |= {"purified": applied.done, "kept": applied.kept, "bad": applied.bad}
        if applied.bad:
            raise Failed(
                f"expected images that can be read and written, got {len(applied.bad)} that cannot (named above); "
                "repair or remove them and run the same command again",
                document,
            )
        return document


Purify = (
    Annotated[Train, subcommand("train")]
    | Annotated[Apply, subcommand("apply")]
    | Annotated[Evaluate, subcommand("evaluate")]
)
