"""Decode batches from files, some batches ahead, in a pool of threads (Pillow decodes outside Python's lock)."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from edgeq.data.augment import FIELDS, Draws
from edgeq.data.decode import fit, formats, open_rgb
from edgeq.data.splits import ImageFiles

AHEAD = 2  # batches that are decoded while one is used
MIN_AREA = 0.25  # of the image; torchvision's 0.08 is more than networks for small devices can learn from
MAX_ASPECT = 4 / 3

Job = tuple[Int64[Tensor, " n"], Draws]  # which images, and the numbers that decide their augmentation


def stream(
    files: ImageFiles, jobs: Iterable[Job], *, random_parts: bool
) -> Iterator[tuple[UInt8[Tensor, "n 3 size size"], Int64[Tensor, " n"], Draws]]:
    """Yield the images, labels and draws of each job, in order.

    Args:
        files: What to decode.
        jobs: The batches; they are taken AHEAD batches before they are yielded.
        random_parts: Whether to cut a random part out of each image, or the middle.

    Raises:
        InputError: A file of the batch is damaged.
    """
    allowed = formats()

    def decode(path: Path, row: list[float]) -> UInt8[np.ndarray, "size size 3"]:
        image = open_rgb(path, allowed=allowed)
        if random_parts:
            return random_part(image, row, size=files.image_size)
        return fit(image, resize=files.resize, size=files.image_size)

    pool = ThreadPoolExecutor(min(32, os.cpu_count() or 1))
    waiting: deque[tuple[list[Future[UInt8[np.ndarray, "size size 3"]]], Job]] = deque()
    try:
        for index, draws in jobs:
            rows = zip(index.tolist(), draws.tolist(), strict=True)
            waiting.append(([pool.submit(decode, files.paths[i], row) for i, row in rows], (index, draws)))
            if len(waiting) > AHEAD:
                yield _collect(files, *waiting.popleft())
        while waiting:
            yield _collect(files, *waiting.popleft())
    finally:  # also when the caller stops early
        pool.shutdown(cancel_futures=True)


def random_part(image: Image.Image, row: list[float], *, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Cut out a random part (of MIN_AREA or more, of about the image's shape) and resize it to a square."""
    width, height = image.size
    area = (MIN_AREA + (1 - MIN_AREA) * row[5]) * width * height
    aspect = MAX_ASPECT ** (2 * row[6] - 1)
    part_width = min(width, max(1, round((area * aspect) ** 0.5)))
    part_height = min(height, max(1, round((area / aspect) ** 0.5)))
    left, top = int(row[1] * (width - part_width + 1)), int(row[0] * (height - part_height + 1))
    box = (left, top, left + part_width, top + part_height)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))


def _collect(
    files: ImageFiles, futures: list[Future[UInt8[np.ndarray, "size size 3"]]], job: Job
) -> tuple[UInt8[Tensor, "n 3 size size"], Int64[Tensor, " n"], Draws]:
    index, draws = job
    images = np.empty((len(futures), files.image_size, files.image_size, 3), dtype=np.uint8)
    for row, future in enumerate(futures):  # a process may have no image of a last, small batch
        images[row] = future.result()
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), files.labels[index], draws


def whole(count: int, batch_size: int) -> Iterator[Job]:
    """Yield the jobs that go through all images in order, with nothing random."""
    for index in torch.arange(count).split(batch_size):
        yield index, torch.zeros(len(index), FIELDS)
