"""What a defender does to images that may be poisoned: bytes in, bytes out.

| arm | what |
|---|---|
| `none` | nothing |
| `blur` | the mean of 3x3 pixels, weights (1, 2, 1)/4 in each direction |
| `jpeg` | JPEG at quality 75 and back |
| `purevq` | a purifier, trained on the same poisoned images |
"""

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from edgeq.purifiers.apply import purify_any
from edgeq.purifiers.base import AbstractPurifier, Draw, to_bytes

Filter = Callable[[Tensor], Tensor]
QUALITY = 75
BATCH = 250


def none(images: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Return the images as they are."""
    return images


def blur(images: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Blur with a binomial of three taps, the edges repeated."""
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    both = (rows[:, :, :, :-2] + 2 * rows[:, :, :, 1:-1] + rows[:, :, :, 2:]) / 4
    return both.round().to(torch.uint8)


def jpeg(images: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Compress with JPEG and decode again."""
    out = np.empty((len(images), *images.shape[2:], 3), dtype=np.uint8)
    for row, pixels in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="JPEG", quality=QUALITY)
        out[row] = np.asarray(Image.open(buffer))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous().to(images.device)


def purified(purifier: AbstractPurifier) -> Filter:
    """Return what a purifier does, batch by batch; the result lies where the images do."""
    device = next(purifier.parameters()).device

    def clean(images: Tensor) -> Tensor:
        made = [to_bytes(purify_any(purifier, part.to(device), draw=Draw())) for part in images.split(BATCH)]
        return torch.cat(made).to(images.device)

    return clean


FIXED: dict[str, Filter] = {"none": none, "blur": blur, "jpeg": jpeg}
