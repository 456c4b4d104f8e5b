"""The errors of edgeq that a user can mend, and the check for optional packages.

An `InputError` is a mistake of the caller: a wrong option, a missing file, a damaged artefact. The command line
prints it as one line and exits with 2. Its message says what was expected, what came, and what to do:
`expected bits in 2..8 or 32, got 9; choose another width`. Everything else that goes wrong inside edgeq is our
own fault and keeps its traceback.
"""

import importlib
import json
from types import ModuleType


class InputError(ValueError):
    """A caller's mistake; the message says what was expected, what came, and what to do."""


class MissingExtra(InputError):
    """An optional package is not installed; the message names the extra that brings it."""


def shortened(value: object) -> str:
    """Return what a file held as JSON, short enough for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra of edgeq brings it.

    Args:
        module: Name to import, for example `"openvino"`.
        extra: Extra of edgeq that installs it, for example `"openvino"`.

    Raises:
        MissingExtra: The package is not installed. A package that is there but fails while it is imported keeps
            its own error, because installing it again would not help.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise MissingExtra(
            f"expected the package {module}, got none; install it with: pip install 'edgeq[{extra}]'"
        ) from error
