"""What a training objective is: the network and its losses as one module, so that data-parallel wrappers see one pass.

The loop calls `check` once, `prepare` before each epoch, and the module itself for each batch. Whatever an objective
draws at random is a function of the batch's key (seed, epoch, batch, process), never of what was drawn before, so a
resumed run goes on with the same bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from edgeq.data import Split
from edgeq.defenses.turns import ALL, Turns
from edgeq.quant.network import MultiBitNet
from edgeq.runs import RunInfo

Key = tuple[int, int, int, int]  # seed, epoch, batch, process
NO_KEY: Key = (0, 0, 0, 0)
Losses = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True)
class Setting:
    """Where the run stands before an epoch, and what an objective may use to get ready for it.

    Attributes:
        epoch: The epoch that is about to begin.
        epochs: All of them.
        folder: The run folder.
        images: Gives so many training images, not augmented, on the network's device; always the same ones.
        active: The widths that train in the epoch.
        main: Whether this process writes files.
        wait: Returns when all processes have called it.
        interrupt: Raises where the user wants to stop.
    """

    epoch: int
    epochs: int
    folder: Path
    images: Callable[[int], Split]
    active: tuple[int, ...]
    main: bool = True
    wait: Callable[[], None] = lambda: None
    interrupt: Callable[[], None] = lambda: None


class AbstractObjective(nn.Module, ABC):
    """A defence: turns a batch into losses.

    Args:
        net: The network in training.
        turns: Which widths a step has.
    """

    clip: float = 0.0  # largest norm of a step's gradient; 0 for any

    def __init__(self, net: MultiBitNet, turns: Turns = ALL) -> None:
        super().__init__()
        self.net, self.turns = net, turns

    def check(self, info: RunInfo) -> None:
        """Raise `InputError` where the choices do not fit the run; called before anything is written."""

    def prepare(self, setting: Setting) -> None:
        """Make or open what the coming epoch needs. The network is calibrated at all active widths."""

    @abstractmethod
    def forward(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        active: tuple[int, ...],
        key: Key = NO_KEY,
    ) -> Losses:
        """Return `loss`, with gradients, and what is worth watching beside it, without.

        Args:
            images: The batch.
            labels: Its classes.
            active: The widths that train now, from high to low.
            key: Seed, epoch, batch and process; decides everything random.
        """
