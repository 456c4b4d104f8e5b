"""Where searches stand, so that a stopped one goes on to the same end.

FOLDER/search.safetensors holds of every search its change, the optimizer's averages and the losses so far, and a key
that tells which choices it belongs to. A search draws its random numbers anew for each step, so nothing else is needed.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from edgeq.errors import InputError
from edgeq.files import load_tensors, save_tensors

FILE = "search.safetensors"
SECONDS = 30.0  # between two writes
PARTS = ("change", "first", "second")


@dataclass
class Course:
    """One search.

    Attributes:
        change: What is searched for.
        first: Average of the gradients, where the rule has one.
        second: Average of their squares.
        losses: Before each step so far.
        settled: False within a step; what is half changed is not written.
    """

    change: Float[Tensor, "n 3 h w"]
    first: Float[Tensor, "n 3 h w"]
    second: Float[Tensor, "n 3 h w"]
    losses: list[float] = field(default_factory=list)
    settled: bool = True

    @staticmethod
    def beginning(change: Float[Tensor, "n 3 h w"]) -> "Course":
        """Return a search before its first step."""
        return Course(change, torch.zeros_like(change), torch.zeros_like(change))


class Courses:
    """The searches of one attack by name, kept in a file or, without one, as long as the program runs.

    Args:
        path: The file.
        key: Which choices the searches belong to.
    """

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        self._path, self._key = path, torch.tensor(list(key.encode()), dtype=torch.uint8)
        self._found = _read(path, self._key) if path is not None and path.exists() else {}
        self._running: dict[str, Course] = {}
        self._written = time.monotonic()

    def begin(self, name: str, start: Float[Tensor, "n 3 h w"]) -> Course:
        """Return the search of this name: where it was stopped, or at its start."""
        found = self._found.get(name)
        if found is None or found.change.shape != start.shape:
            found = Course.beginning(start)
        course = Course(*(getattr(found, part).to(start) for part in PARTS), losses=list(found.losses))
        self._running[name] = course
        return course

    def stepped(self) -> None:
        """Write the file if that was long ago."""
        if time.monotonic() - self._written >= SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file, unless a search is within a step."""
        if self._path is None or not self._running or not all(c.settled for c in self._running.values()):
            return
        tensors = {"key": self._key}
        for name, course in self._running.items():
            tensors |= {f"{name}.{part}": getattr(course, part).detach().cpu() for part in PARTS}
            tensors[f"{name}.losses"] = torch.tensor(course.losses, dtype=torch.float64)
        save_tensors(self._path, tensors)
        self._written = time.monotonic()

    def forget(self) -> None:
        """Remove the file: what was searched for is found."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _read(path: Path, key: Tensor) -> dict[str, Course]:
    """Return the searches of a file, or refuse those of other choices."""
    tensors = load_tensors(path)
    if "key" not in tensors or not torch.equal(tensors.pop("key"), key):
        raise InputError(
            f"expected a new folder, or the search of the same choices, got {path}; choose another folder or remove it"
        )
    names = {name.rpartition(".")[0] for name in tensors}
    return {
        name: Course(*(tensors[f"{name}.{part}"] for part in PARTS), losses=tensors[f"{name}.losses"].tolist())
        for name in names
    }
