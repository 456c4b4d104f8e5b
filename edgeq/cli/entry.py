"""The `edgeq` program: find the command, read its options, run it, and turn how it ends into an exit code.

0    success
1    a fault of edgeq itself, with its traceback
2    the input was wrong, or the result is not to be relied on: one line on stderr
130  stopped by Ctrl-C or SIGTERM
141  whoever read standard output has gone
"""

import contextlib
import importlib
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeq import __version__
from edgeq.errors import InputError

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("demo", "edgeq.cli.demo:Demo", "the whole tour on embedded data, in minutes"),
    ("train", "edgeq.cli.train:Train", "train one shared backbone at all bit-widths"),
    (
        "evaluate",
        "edgeq.cli.evaluate:Evaluate",
        "accuracy per bit-width, also under attack, of a run or an artefact",
    ),
    ("transfer", "edgeq.cli.transfer:Transfer", "which width's patches fool which, and how alike the widths look"),
    ("calibrate", "edgeq.cli.calibrate:Calibrate", "post-training quantization of a run or of float weights"),
    ("sensitivity", "edgeq.cli.sensitivity:Sensitivity", "which layers a width loses its accuracy in"),
    ("export", "edgeq.cli.export:Export", "write integer-only models, each with its proof"),
    ("verify", "edgeq.cli.verify:Verify", "prove an exported artefact again"),
    ("audit", "edgeq.cli.audit:Audit", "how much of a model really runs in integers, and what keeps the rest in float"),
    ("bench", "edgeq.cli.bench:Bench", "size and latency of artefacts"),
    ("purify", "edgeq.cli.purify:Purify", "train, apply and judge networks that clean images"),
    ("poison", "edgeq.cli.poison:Poison", "attack training data, and see what a purifier leaves of the attack"),
    ("report", "edgeq.cli.report:Report", "one self-contained HTML page"),
)
HELP = """usage: edgeq COMMAND ...

One vision network at 32, 8, 5, 4 and 2 bits, shipped as proven integer-only models.

{commands}

Every command takes --help, and --json FILE ('-' for standard output) to write its result as one JSON object.
Try it: edgeq demo
"""
PACKAGE = str(Path(__file__).resolve().parents[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; an unexpected exception is let through."""
    if argv is None:  # the program itself, not a call from Python: torch's C++ side warns past Python
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with quiet():
            return _dispatch(args)
    except InputError as error:
        return _end(str(error), 2)
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which would complain
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _end("stopped", 130)


def _dispatch(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        width = max(len(name) for name, _, _ in COMMANDS)
        sys.stdout.write(HELP.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, _, text in COMMANDS)))
        return 0
    if args and args[0] == "--version":
        sys.stdout.write(f"edgeq {__version__}\n")
        return 0
    places = {name: place for name, place, _ in COMMANDS}
    if not args or args[0] not in places:
        got = repr(args[0]) if args else "none"
        raise InputError(f"expected a command of {', '.join(places)}, got {got}; see edgeq --help")
    return _run(args, places[args[0]])


def _run(args: list[str], place: str) -> int:
    from edgeq.cli.command import Failed, Stopped, check_writable
    from edgeq.cli.parse import parse
    from edgeq.cli.talk import Talk

    module, _, name = place.partition(":")
    command = parse(getattr(importlib.import_module(module), name), args[1:], prog=f"edgeq {args[0]}")
    if command is None:
        return 0
    first = os.environ.get("RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" not in os.environ  # of torchrun's processes
    target = command.json if first else ""
    if target not in ("", "-"):
        check_writable(target, "--json")
    try:
        _write_json(target, {"command": args[0], "edgeq": __version__, **command.run(Talk(mute=not first))})
    except Failed as error:
        _write_json(target, {"command": args[0], "edgeq": __version__, **error.document})
        raise
    except Stopped as error:
        again = [*args, *(option for option in error.again if option not in args)]
        return _end(f"{error}; go on with: edgeq {shlex.join(again)}", 130)
    return 0


def _write_json(target: str, document: dict[str, object]) -> None:
    if not target:
        return
    if target == "-":
        import json

        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()
        return
    from edgeq.files import write_json

    write_json(target, document)


def _end(message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"edgeq: {' '.join(message.split())}\n")
    return code


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what other packages have to say from the user; warnings of edgeq become one line each."""

    def show(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
        if str(Path(filename).resolve()).startswith(PACKAGE) or category.__module__.startswith("edgeq"):
            _end(f"note: {message}", 0)

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what matters comes as an exception
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        try:
            yield
        finally:
            logging.disable(before)
