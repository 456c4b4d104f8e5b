"""What a result file says of the code that made it."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def commit() -> str:
    """Return the commit of this checkout, with "+" where files differ from it; "unknown" outside of one."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def without_place(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training's choices with what its data are, but not where they lay."""
    data = str(choices["data"])
    return {**choices, "data": data if data.startswith("signs") else data.partition(":")[0]}


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
