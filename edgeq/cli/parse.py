"""From arguments to a command object: tyro reads the dataclass, and its boxed complaints become one line."""

import contextlib
import io
from collections.abc import Sequence

import tyro

from edgeq.cli.command import AbstractCommand
from edgeq.errors import InputError

FRAME = "│╭╮╰╯"


def parse(command: type[AbstractCommand], args: Sequence[str], *, prog: str) -> AbstractCommand | None:
    """Return the command with its options, or None after its help was printed.

    Raises:
        InputError: The arguments are not the command's.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(command, prog=prog, args=list(args), config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if not stop.code:
            return None
        raise InputError(f"{one_line(complaint.getvalue())}; see {prog} --help") from None


def one_line(boxed: str) -> str:
    """Return the message in tyro's box (up to the first rule, below which the help begins) as one line."""
    words: list[str] = []
    for line in boxed.splitlines():
        text = line.strip(f"{FRAME} ")
        if line.startswith(("╭", "╰")):
            continue
        if text and not text.strip("─"):
            break
        words += text.split()
    return " ".join(words).rstrip(".") or "the arguments are not understood"
