"""Batches: shuffled and augmented for training, in order for evaluation.

Batch k of epoch e is a function of (seed, e, k) and of the split, of nothing else: the order of an epoch comes from
the stream ("order", seed, e) and the augmentation from ("batch", seed, e, k). A run that stopped in the middle of an
epoch goes on with `epoch(e, start=k)`, bit for bit.

`batch_size` counts the images of all processes. Of W processes, process r gets the r-th of W slices of each batch,
with the augmentation that the images have in the whole batch: W processes see what one would.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.data.augment import Augment, Draws, augment_batch, draw
from edgeq.data.seeds import generator
from edgeq.data.splits import ImageFiles, Split
from edgeq.data.stream import Job, stream, whole
from edgeq.errors import InputError

Batch = tuple[UInt8[Tensor, "n 3 h w"], Int64[Tensor, " n"]]


class TrainBatches:
    """Training batches of one process.

    Args:
        split: The images; a `Split` is moved to `device` once.
        batch_size: Images per batch, over all processes; a multiple of `world_size`.
        seed: Decides the order and the augmentation.
        augment: What to do to the images; None leaves them as they are.
        rank: This process.
        world_size: Number of processes.
        device: Where the batches shall be.
        drop_last: Whether to leave out a last, smaller batch. If it is kept, its slices may differ by one image.

    Raises:
        InputError: The batch size does not fit the processes or the split.
    """

    def __init__(
        self,
        split: Split | ImageFiles,
        *,
        batch_size: int,
        seed: int,
        augment: Augment | None,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        drop_last: bool = True,
    ) -> None:
        if not 0 <= rank < world_size:
            raise InputError(f"expected rank in 0..{world_size - 1}, got {rank}; check the launcher")
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"expected a batch size that is a positive multiple of {world_size} processes, got {batch_size}; "
                "the batch size counts the images of all processes"
            )
        if drop_last and len(split) < batch_size:
            raise InputError(
                f"expected at least one batch of {batch_size} images, got {len(split)}; use a smaller batch size"
            )
        self.device = torch.device(device)
        if isinstance(split, Split):
            split = Split(split.images.to(self.device), split.labels.to(self.device))
        self.split, self.batch_size, self.seed, self.augment = split, batch_size, seed, augment
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches `start`, `start + 1`, … of epoch `number`."""
        if not 0 <= start <= len(self):
            raise InputError(f"expected a first batch in 0..{len(self)}, got {start}; the epoch has no such batch")
        order = torch.randperm(len(self.split), generator=generator("order", self.seed, number))
        jobs = (self._slice(order, number, k) for k in range(start, len(self)))
        if isinstance(self.split, Split):
            yield from (self._from_memory(self.split, index, draws) for index, draws in jobs)
        else:
            yield from self._from_files(self.split, jobs)

    def _slice(self, order: Int64[Tensor, " images"], number: int, k: int) -> Job:
        """Return which images of batch `k` belong to this process, and their draws."""
        index = order[k * self.batch_size : (k + 1) * self.batch_size]
        draws = draw(len(index), generator("batch", self.seed, number, k))
        return index.tensor_split(self.world_size)[self.rank], draws.tensor_split(self.world_size)[self.rank]

    def _from_memory(self, split: Split, index: Int64[Tensor, " m"], draws: Draws) -> Batch:
        index = index.to(self.device)
        images = split.images[index]
        if self.augment is not None:
            images = augment_batch(images, draws, self.augment)
        return images, split.labels[index]

    def _from_files(self, files: ImageFiles, jobs: Iterator[Job]) -> Iterator[Batch]:
        random_parts = self.augment is not None and self.augment.crop > 0
        for images, labels, draws in stream(files, jobs, random_parts=random_parts):
            images = images.to(self.device)
            if self.augment is not None:
                images = augment_batch(images, draws, self.augment, shift=False)
            yield images, labels.to(self.device)


def batches(split: Split | ImageFiles, batch_size: int, *, device: str | torch.device = "cpu") -> Iterator[Batch]:
    """Yield all images in order, without augmentation; the last batch may be smaller."""
    if batch_size < 1:
        raise InputError(f"expected a batch size of 1 or more, got {batch_size}; choose another")
    if isinstance(split, Split):
        pairs = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    else:
        decoded = stream(split, whole(len(split), batch_size), random_parts=False)
        pairs = ((images, labels) for images, labels, _ in decoded)
    for images, labels in pairs:
        yield images.to(device), labels.to(device)


def decoded(split: Split | ImageFiles) -> UInt8[Tensor, "n c h w"]:
    """Return all images of a split, as `batches` has them."""
    return torch.cat([images for images, _ in batches(split, 256)])
