"""Captions of classes, and their bytes as tokens.

A text becomes START, its UTF-8 bytes, END, zeros. END is the largest token, as in CLIP: where it stands is the argmax.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from edgeq.errors import InputError

TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a small photo of a {}.",
    "a blurry photo of a {}.",
    "a close-up of a {}.",
    "this is a {}.",
)
START, END = 256, 257
TOKENS = 258


def captions(classes: tuple[str, ...]) -> list[str]:
    """Return each class in every template: first all captions of the first class."""
    spoken = [" ".join(name.replace("-", " ").replace("_", " ").split()) for name in classes]
    return [template.format(name) for name in spoken for template in TEMPLATES]


def byte_tokens(texts: list[str], context: int) -> Int64[Tensor, "texts context"]:
    """Return the tokens of texts.

    Raises:
        InputError: A text does not fit.
    """
    tokens = torch.zeros(len(texts), context, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        codes = [START, *text.encode(), END]
        if len(codes) > context:
            raise InputError(
                f"expected captions of at most {context - 2} bytes, got {len(codes) - 2} in '{text[:40]}…'; "
                "rename the class, or use a longer context"
            )
        row[: len(codes)] = torch.tensor(codes)
    return tokens
