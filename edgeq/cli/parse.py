"""From arguments to a command object: tyro reads the dataclass, and its boxed complaints become one line."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from edgeq.cli.command import AbstractCommand
from edgeq.errors import InputError

FRAME = "│╭╮╰╯"
SEVERAL = "Each takes --help, and --json FILE ('-' for standard output) to write its result as one JSON object."


def parse(command: Any, args: Sequence[str], *, prog: str) -> AbstractCommand | None:
    """Return the command with its options, or None after its help was printed.

    Args:
        command: A type of AbstractCommand, or a union of several, one of which the first argument names.
        args: The arguments.
        prog: What the user typed before them.

    Raises:
        InputError: The arguments are not the command's.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            words = None if isinstance(command, type) else SEVERAL
            config = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(command, prog=prog, description=words, args=list(args), config=config)
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
