"""`edgeq train --tensorboard`: each epoch's losses and accuracies for TensorBoard, beside metrics.jsonl."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.errors import require

if TYPE_CHECKING:
    from edgeq.training import Progress

FOLDER = "tensorboard"


class Board:
    """Writes event files into a run folder.

    Args:
        run: The run folder.
        epoch: The first epoch that will be written; what an earlier, killed process wrote of it is not shown.
    """

    def __init__(self, run: Path, epoch: int = 0) -> None:
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(run / FOLDER), purge_step=epoch + 1)

    def take(self, progress: "Progress") -> None:
        """Write an epoch that ends; other progress is passed over."""
        if not progress.accuracy:
            return
        for name, loss in progress.losses.items():
            self.writer.add_scalar(f"loss/{name}", loss, progress.epoch + 1)
        for bits, accuracy in progress.accuracy.items():
            self.writer.add_scalar(f"accuracy/{bits} bits", accuracy, progress.epoch + 1)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()
