"""Two towers, of images and of texts, trained from nothing by contrast, as CLIP (Radford et al., arXiv 2103.00020).

    p_ij = s cos(image_i, text_j),    L = (CE over the texts of each image + CE over the images of each text) / 2

Captions are class names in templates, so a batch has several right texts for an image: the target is spread evenly over
the texts of its class (UniCL, arXiv 2204.03610), and is CLIP's where every class occurs once. With `hardened` images
are first changed within eps so that L's first half grows (TeCoA, arXiv 2212.07016, which does so to a finished CLIP
and trains its image tower alone): the towers from which a shield begins in its paper. eps grows to its full
size over the first third of the training; a small network that starts at the full size learns nothing.
"""

import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn

from edgeq import runs
from edgeq.attacks.ball import Ball, Pace, ascend
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.files import load_tensors
from edgeq.purifiers.base import AbstractAnswering, AbstractGuard, Draw, as_unit
from edgeq.purifiers.captions import TEMPLATES, TOKENS, byte_tokens, captions
from edgeq.purifiers.objective import AbstractObjective, descend
from edgeq.purifiers.transformer import HEAD, ImageTower, TextTower

HOTTEST = math.log(100.0)  # of the logarithm of s, as in CLIP
NO_INTEGERS = "attention, LayerNorm and GELU have no integer form here"
GROWING = 1 / 3  # of the training, while eps grows


@dataclass(frozen=True)
class Towers:
    """Choices of the two towers.

    Attributes:
        classes: Names of the data's classes.
        patch: Side of a patch in pixels.
        width: Numbers per token in both towers.
        depth: Blocks of the image tower.
        text_depth: Blocks of the text tower.
        dim: Numbers of a feature.
        context: Longest caption in bytes, with prompt vectors and two marks.
        hardened: Train against changed images.
        eps: Largest change of a pixel, of 255; with `hardened`.
        steps: Gradient steps of the change; each is 2 eps / steps long.
    """

    kind: ClassVar[str] = "towers"
    weights: ClassVar[str] = runs.WEIGHTS
    classes: tuple[str, ...]
    patch: int = 4
    width: int = 64
    depth: int = 3
    text_depth: int = 2
    dim: int = 64
    context: int = 96
    hardened: bool = False
    eps: float = 4.0
    steps: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.classes) < 2:
            raise InputError(f"expected the names of 2 or more classes, got {len(self.classes)}; name the data's")
        sizes = (self.patch, self.depth, self.text_depth, self.dim)
        if min(sizes) < 1 or self.width < HEAD or self.width % HEAD:
            raise InputError(
                f"expected patch, depth, text_depth and dim >= 1 and a width of multiples of {HEAD}, got {sizes} and "
                f"{self.width}; correct them"
            )
        if not 0 < self.eps <= 255:
            raise InputError(f"expected eps above 0 and at most 255 (of 255), got {self.eps}; for example 4")
        self.pace()
        byte_tokens(captions(self.classes), self.context)

    def pace(self) -> Pace:
        """Return how images are changed."""
        return Pace(self.steps, 2 / max(self.steps, 1), decay=False)

    def path(self, start: str | os.PathLike[str]) -> Path:
        """Return where the weights of a run lie."""
        return Path(start) / self.weights

    def read(self, start: str | os.PathLike[str]) -> dict[str, Tensor]:
        """Return the weights that lie in a run folder."""
        return {name.removeprefix("towers."): tensor for name, tensor in load_tensors(self.path(start)).items()}

    def towers(self, image_shape: tuple[int, int, int]) -> "TwoTowers":
        """Return the towers, untrained."""
        if image_shape[1] % self.patch or image_shape[2] % self.patch:
            raise InputError(
                f"expected images whose sides are multiples of the patch, {self.patch}, got {image_shape[1]} x "
                f"{image_shape[2]}; choose another patch"
            )
        return TwoTowers(self, image_shape)

    def build(self, image_shape: tuple[int, int, int], batch_size: int) -> "Naming":
        """Return the towers as what names images, untrained."""
        return Naming(self.towers(image_shape), self.classes)

    def objective(self, purifier: AbstractGuard, lr: float) -> "TowersObjective":
        """Return the towers in training."""
        assert isinstance(purifier, Naming)
        return TowersObjective(purifier, lr)


class AbstractTowers(nn.Module, ABC):
    """An image tower and a text tower with features in one space.

    Attributes:
        dim: Numbers of a feature.
        width: Numbers of an embedded token.
        context: Longest text in tokens.
        grid: Places of the grid, (rows, columns).
    """

    dim: int
    width: int
    context: int
    grid: tuple[int, int]

    @property
    @abstractmethod
    def scale(self) -> Float[Tensor, ""]:
        """What multiplies cosines."""

    @abstractmethod
    def see(self, images: Shaped[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d gh gw"]]:
        """Return the class feature and the grid features of bytes or floats in [0, 1]."""

    @abstractmethod
    def tokens(self, texts: list[str]) -> Int64[Tensor, "n context"]:
        """Return the tokens of texts; the last of each is its largest."""

    @abstractmethod
    def embed(self, tokens: Int64[Tensor, "n tokens"]) -> Float[Tensor, "n tokens width"]:
        """Return tokens as vectors, without their places."""

    @abstractmethod
    def read(self, embedded: Float[Tensor, "n tokens width"], ends: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return the features of embedded texts that end at some token."""


def named(towers: AbstractTowers, classes: tuple[str, ...]) -> Float[Tensor, "classes d"]:
    """Return the unit feature of each class: the mean over its captions."""
    tokens = towers.tokens(captions(classes)).to(towers.scale.device)
    features = towers.read(towers.embed(tokens), tokens.argmax(1))
    return F.normalize(F.normalize(features, dim=-1).unflatten(0, (len(classes), -1)).mean(1), dim=-1)


class TwoTowers(AbstractTowers):
    """Our own towers."""

    def __init__(self, config: Towers, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config = config
        self.dim, self.width, self.context = config.dim, config.width, config.context
        size = {"width": config.width, "dim": config.dim}
        self.image = ImageTower(image_shape, patch=config.patch, depth=config.depth, **size)
        self.text = TextTower(TOKENS, config.context, depth=config.text_depth, **size)
        self.grid = self.image.grid
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What multiplies cosines."""
        return self.log_scale.clamp(max=HOTTEST).exp()

    def see(self, images: Shaped[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d gh gw"]]:
        """Return the class feature and the grid features."""
        return self.image(as_unit(images))

    def tokens(self, texts: list[str]) -> Int64[Tensor, "n context"]:
        """Return bytes."""
        return byte_tokens(texts, self.context)

    def embed(self, tokens: Int64[Tensor, "n tokens"]) -> Float[Tensor, "n tokens width"]:
        """Return tokens as vectors."""
        return self.text.words(tokens)

    def read(self, embedded: Float[Tensor, "n tokens width"], ends: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return the features of embedded texts."""
        length = int(ends.max()) + 1  # what follows the end is not seen by it
        return self.text(embedded[:, :length], ends)


class Naming(AbstractAnswering):
    """Towers that name images by the captions of the classes; they guard nothing.

    Args:
        towers: The towers.
        classes: Names of the classes.
    """

    def __init__(self, towers: TwoTowers, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.towers, self.classes = towers, classes

    def answers(self, images: Shaped[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n classes"]]:
        """Return the logits of the captions."""
        seen = F.normalize(self.towers.see(images)[0], dim=-1)
        return {"accuracy": self.towers.scale * seen @ named(self.towers, self.classes).T}

    def chosen(self, images: Shaped[Tensor, "n c h w"]) -> tuple[int, Int64[Tensor, "n h2 w2"] | None]:
        """Return that there are no codewords."""
        return 0, None

    def not_exportable(self) -> str:
        """Say what does not fold into integers."""
        return NO_INTEGERS


def contrast(
    logits: Float[Tensor, "n n"], labels: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the losses of each image over the texts and of each text over the images."""
    same = (labels[:, None] == labels).to(logits)
    target = same / same.sum(1, keepdim=True)
    return (
        F.cross_entropy(logits, target, reduction="none"),
        F.cross_entropy(logits.T, target, reduction="none"),
    )


class TowersObjective(AbstractObjective):
    """Images against their captions."""

    def __init__(self, purifier: Naming, lr: float) -> None:
        super().__init__()
        self.purifier: Naming = purifier
        self.optimizers = [torch.optim.Adam(purifier.parameters(), lr=lr)]
        tokens = purifier.towers.tokens(captions(purifier.classes))
        self.register_buffer("said", tokens[:, : int(tokens.argmax(1).max()) + 1], persistent=False)

    def step(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, done: float, draw: Draw
    ) -> dict[str, float]:
        """Take one step."""
        towers, config = self.purifier.towers, self.purifier.towers.config
        gen = generator("captions", repr(draw.seed))
        which = torch.randint(0, len(TEMPLATES), (len(labels),), generator=gen).to(labels.device)
        tokens = self.get_buffer("said")[labels * len(TEMPLATES) + which]
        texts = F.normalize(towers.read(towers.embed(tokens), tokens.argmax(1)), dim=-1)
        shown: Tensor = images
        if config.hardened:
            fixed = texts.detach()
            eps = config.eps / 255 * min(1.0, max(done / GROWING, 0.1))
            shown = ascend(lambda x: contrast(self._logits(x, fixed), labels)[0], Ball(images, eps), config.pace(), gen)
        logits = self._logits(shown, texts)
        loss = torch.cat(contrast(logits, labels)).mean()
        descend(loss, self.optimizers[0])
        right = (labels[logits.argmax(1)] == labels).float().mean()
        return {"loss": float(loss.detach()), "right": float(right), "scale": float(towers.scale.detach())}

    def _logits(self, images: Tensor, texts: Tensor) -> Tensor:
        towers = self.purifier.towers
        return towers.scale * F.normalize(towers.see(images)[0], dim=-1) @ texts.T
