"""Training state on disk: one safetensors file, written whole or not at all, without pickle.

It holds the network, the optimizer's momentum, the averaged copy and the position, which all randomness comes from. An
old state is replaced only by a newer one that is safe, so a full disk or a kill at any moment loses nothing saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edgeq.errors import InputError
from edgeq.files import load_tensors, save_tensors
from edgeq.quant.network import MultiBitNet

FILE = "state.safetensors"


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        epoch: The next epoch.
        batch: The next batch in it.
        entered: The widths that have entered.
        losses: Sum and number of each loss in the epoch so far.
    """

    epoch: int
    batch: int
    entered: tuple[int, ...]
    losses: Mapping[str, tuple[float, int]] = field(default_factory=dict)


def save_state(
    folder: Path,
    net: MultiBitNet,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    position: Position,
) -> None:
    """Write the state; the former one is replaced in one rename."""
    tensors = {f"net.{name}": t for name, t in net.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": t for key, t in state.items() if isinstance(t, Tensor)}
    if average is not None:
        tensors |= {f"average.{name}": t for name, t in average.items()}
    tensors["position"] = torch.tensor([position.epoch, position.batch])
    tensors |= {f"losses.{k}": torch.tensor(v, dtype=torch.float64) for k, v in position.losses.items()}
    tensors["entered"] = torch.tensor(position.entered, dtype=torch.int64)
    save_tensors(folder / FILE, {name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def load_state(
    folder: Path, net: MultiBitNet, optimizer: torch.optim.Optimizer, average: dict[str, Tensor] | None
) -> Position | None:
    """Put a saved state back and return its position; None where there is none."""
    path = folder / FILE
    if not path.exists():
        return None
    tensors = load_tensors(path)
    try:
        net.load_state_dict(_under(tensors, "net."))
        _load_optimizer(optimizer, _under(tensors, "optimizer."))
        if average is not None:
            for name, t in _under(tensors, "average.").items():
                average[name].copy_(t)
        epoch, batch = tensors["position"].tolist()
        losses = {name: (float(t[0]), int(t[1])) for name, t in _under(tensors, "losses.").items()}
        return Position(epoch, batch, tuple(tensors["entered"].tolist()), losses)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise InputError(
            f"expected this run's state in {path}, got one that does not fit: {text}; start a new run"
        ) from error


def clear_state(folder: Path) -> None:
    """Remove the state of a finished run."""
    (folder / FILE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = t
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
