"""What every command is: a frozen dataclass whose fields are its options, and a `run` that returns its JSON object.

The modules of the commands load nothing heavy: torch and the rest of edgeq are imported inside `run`, so that help and
mistakes of spelling are answered at once.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from edgeq.cli.talk import Talk
from edgeq.errors import InputError

Document = Mapping[str, Any]  # Any: JSON

DataSpec = Annotated[str, arg(metavar="DATA")]
MaybeData = Annotated[str, arg(metavar="DATA", help_behavior_hint="")]
Folder = Annotated[Path, arg(metavar="DIR")]
MaybeFolder = Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")]
MaybeFile = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
MaybeNumber = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
MaybeNumbers = Annotated[tuple[float, ...], arg(metavar="X …", help_behavior_hint="")]
MaybeCount = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
JsonFile = Annotated[str, arg(metavar="FILE", help_behavior_hint="")]
Widths = Annotated[tuple[int, ...], arg(metavar="B …")]
AllWidths = Annotated[tuple[int, ...], arg(metavar="B …", help_behavior_hint="(default: all of the run)")]


class Failed(InputError):
    """A command that ends with exit code 2 but has measured something: the JSON object is written all the same."""

    def __init__(self, message: str, document: Document) -> None:
        super().__init__(message)
        self.document = document


class Stopped(Exception):
    """The user stopped a command; the same command with the options `again` goes on."""

    def __init__(self, message: str, *, again: tuple[str, ...]) -> None:
        super().__init__(message)
        self.again = again


def check_writable(target: str | Path, option: str) -> None:
    """Refuse a file that cannot be written before the work is done, not after it."""
    path = Path(target).absolute()
    parent = next(folder for folder in path.parents if folder.exists())
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"expected a file to write for {option}, got {target}; choose another place")


@dataclass(frozen=True, kw_only=True)
class AbstractCommand(ABC):
    """Options that all commands have.

    Attributes:
        json: Write the result as one JSON object to this file; '-' is standard output.
    """

    json: JsonFile = ""

    @abstractmethod
    def run(self, talk: Talk) -> Document:
        """Do the work, tell the user about it through `talk`, and return the JSON object."""
