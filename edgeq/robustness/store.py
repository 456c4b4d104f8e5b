"""What is kept of an evaluation in the run folder, so that a stopped one goes on.

    RUN/results/robustness/KEY.safetensors   the patches of a cell (bytes), and where they lie
    RUN/results/robustness/KEY.json          what was attacked, how the search went, and what each width answered

KEY is a hash of all that the patches depend on: the network, the images, the attack's settings, the seed. So a cell is
found again exactly when it would come out the same. The JSON file is written last: where it is, the cell is whole.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from edgeq.attacks.base import PatchResult
from edgeq.attacks.eot import EOT
from edgeq.attacks.patch import Placement
from edgeq.errors import InputError
from edgeq.files import load_tensors, read_json, save_tensors, sha256, write_json
from edgeq.robustness.answers import Answer

FORMAT = 1
FOLDER = "robustness"


@dataclass
class Made:
    """The patches of a cell, how their search went, and the answers to them.

    Attributes:
        result: The patches.
        queries: Images shown to the surrogate, per attacked image.
        seconds: What making them took.
        answers: By width.
    """

    result: PatchResult
    queries: float
    seconds: float
    answers: dict[int, Answer] = field(default_factory=dict)


class Store:
    """Cells in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str, *, views: EOT | None) -> Made | None:
        """Return a cell, or None where there is none or the patches are not the ones that were written."""
        path, patches = self.folder / f"{key}.json", self.folder / f"{key}.safetensors"
        if not (path.exists() and patches.exists()):
            return None
        try:
            body = read_json(path)
            if body["format"] != FORMAT or body["sha256"] != sha256(patches):
                return None
            return Made(
                _result(load_tensors(patches), body, views),
                float(body["queries"]),
                float(body["seconds"]),
                {int(bits): _answer(entry) for bits, entry in body["answers"].items()},
            )
        except (InputError, KeyError, TypeError, ValueError, AttributeError):
            return None  # damaged: it is made again

    def write(self, key: str, made: Made, about: Mapping[str, Any]) -> None:
        """Keep a cell."""
        result = made.result
        tensors = {"patch": (result.patch * 255.0).round().to(torch.uint8), "score": result.score}
        if result.places is not None:
            tensors |= {"top": result.places.top, "left": result.places.left}
        patches = self.folder / f"{key}.safetensors"
        save_tensors(patches, tensors)
        body = {
            "format": FORMAT,
            "sha256": sha256(patches),
            "about": about,
            "queries": made.queries,
            "seconds": made.seconds,
            "trace": [value if math.isfinite(value) else None for value in result.trace],  # NaN is not JSON
            "flat": result.flat,
            "dead": result.dead,
            "late": result.late,
            "answers": {str(bits): _entry(answer) for bits, answer in made.answers.items()},
        }
        write_json(self.folder / f"{key}.json", body)


def key_of(parts: Mapping[str, Any]) -> str:
    """Return a short hash of everything that decides a result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> str:
    """Return a hash of named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _result(tensors: dict[str, Tensor], body: dict[str, Any], views: EOT | None) -> PatchResult:
    places = None if views is not None else Placement(tensors["top"], tensors["left"])
    return PatchResult(
        tensors["patch"].float() / 255.0,
        places,
        views,
        tensors["score"],
        torch.zeros(len(tensors["patch"]), dtype=torch.int64),
        tuple(math.nan if value is None else float(value) for value in body["trace"]),
        float(body["flat"]),
        float(body["dead"]),
        float(body.get("late", 0.0)),
    )


def _entry(answer: Answer) -> dict[str, Any]:
    integer = None if answer.integer is None else answer.integer.tolist()
    same = integer == answer.named.tolist()
    return {
        "named": answer.named.tolist(),
        "integer": "same" if same else integer,
        "codes": answer.codes,
        "mismatches": answer.mismatches,
    }


def _answer(entry: dict[str, Any]) -> Answer:
    named = torch.tensor(entry["named"], dtype=torch.int64)
    integer = named if entry["integer"] == "same" else entry["integer"]
    if isinstance(integer, list):
        integer = torch.tensor(integer, dtype=torch.int64)
    return Answer(named, integer, int(entry["codes"]), int(entry["mismatches"]))
