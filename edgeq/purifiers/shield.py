"""PerturbShield (DEFEAT, ICLR 2026): a codebook between the features of a frozen two-tower model and its answer.

    I, G       class feature and grid features of an image, from the frozen image tower
    G^         D(nearest codewords of E(G))                  a VQ-VAE on the grid of features
    P          W G^                                          one feature again, a learned sum over the places
    logits     (1 - f) s cos(I, t) + f s cos(P, t)           f = 0.5; t: texts that begin with learned vectors

    L  =  CE(logits) + alpha |G^ - G|^2 + beta |sg(z) - e|^2 + beta / 4 |z - sg(e)|^2 + lam |P - I|_1 + mu |t - t0|_1

on adversarial images alone: PGD on CE with 3 steps of 2 eps / 3, through the whole model with the texts of the step
before. t0 are the captions of the classes. Every norm is a mean per number, the L1 ones between unit vectors, as in
the authors' code, which is what gives lam = 10 and mu = 20 their size.

Where we differ, and why: codewords follow a moving average, as in `purevq`, so their own term (beta) is that average;
vectors have 16 numbers and a fixed scale; t0 is the mean over several captions; Adam takes the place of SGD. The tower
and its texts are in float32 throughout: gradients of half precision vanish by themselves and pass for robustness.

`features="class"` is the paper's ablation (one codeword for the class feature), `discrete=False` ours (the same network
without a codebook: is it discreteness that protects?), and `features="none"` the control: adversarial training of
the texts alone.
"""

import math
import os
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.attacks.ball import Ball, Pace, ascend
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.files import sha256
from edgeq.purifiers.base import AbstractGuard, Draw
from edgeq.purifiers.blocks import check_network
from edgeq.purifiers.guarded import GuardedTowers, Sizes
from edgeq.purifiers.objective import AbstractObjective, descend
from edgeq.purifiers.openclip import OpenClip
from edgeq.purifiers.towers import Towers


@dataclass(frozen=True)
class Shield:
    """Choices of the shield; `edgeq.purifiers.shield_from` fills in the first three from a start.

    Attributes:
        start: Run folder of kind towers, or a file of open_clip's weights; read when training begins, not needed later.
        start_sha256: Digest of its weights.
        network: Its choices.
        classes: Names of the data's classes.
        features: What is rebuilt: the grid, the class feature, or nothing (adversarial training of texts alone).
        discrete: Whether there is a codebook.
        channels: Of the inner layers.
        codes: Codewords.
        code_dim: Length of a codeword.
        prompt_length: Learned vectors before a class's name.
        fusion: Weight of the shield's logits; the class feature's have the rest.
        alpha: Weight of the reconstruction.
        beta: Weight of the codebook; the commitment has a quarter of it.
        lam: Weight of the shield's feature being that of the class token.
        mu: Weight of the texts being the captions.
        eps: Largest change of a pixel in training, of 255.
        steps: Gradient steps of the attack in training.
        step: Their size, in units of eps.
    """

    kind: ClassVar[str] = "shield"
    start: str
    start_sha256: str
    network: Towers | OpenClip
    classes: tuple[str, ...]
    features: Literal["grid", "class", "none"] = "grid"
    discrete: bool = True
    channels: int = 64
    codes: int = 512
    code_dim: int = 16
    prompt_length: int = 16
    fusion: float = 0.5
    alpha: float = 0.5
    beta: float = 0.1
    lam: float = 10.0
    mu: float = 20.0
    eps: float = 4.0
    steps: int = 3
    step: float = 2 / 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_network(self.channels, 0)
        if self.features not in ("grid", "class", "none"):
            raise InputError(f"expected features grid, class or none, got {self.features!r}; choose one of them")
        if len(self.classes) < 2 or self.codes < 2 or self.code_dim < 1 or self.prompt_length < 1:
            raise InputError(
                f"expected 2 or more classes and codes, code_dim and prompt_length >= 1, got {len(self.classes)}, "
                f"{self.codes}, {self.code_dim} and {self.prompt_length}; correct them"
            )
        weights = (self.alpha, self.beta, self.lam, self.mu)
        if not all(0 <= weight < math.inf for weight in weights) or not 0 < self.fusion <= 1:
            raise InputError(
                f"expected alpha, beta, lam and mu >= 0 and fusion above 0 and at most 1, got {weights} and "
                f"{self.fusion}; features none is the model without a shield"
            )
        if not 0 < self.eps <= 255:
            raise InputError(f"expected eps above 0 and at most 255 (of 255), got {self.eps}; for example 4")
        self.pace()

    def pace(self) -> Pace:
        """Return how the attack in training steps."""
        return Pace(self.steps, self.step, decay=False)

    def build(self, image_shape: tuple[int, int, int], batch_size: int) -> GuardedTowers:
        """Return the guarded model, before it has the start's weights."""
        towers = self.network.towers(image_shape)
        rows, columns = towers.grid if self.features == "grid" else (1, 1)
        vectors = batch_size * rows * columns
        codes = self.codes if self.discrete and self.features != "none" else 0
        if vectors < codes:
            raise InputError(
                f"expected a batch of at least as many vectors as the {codes} codes, got {vectors}; "
                "use a larger batch_size, or fewer codes"
            )
        sizes = Sizes(self.channels, codes, self.code_dim, self.beta / 4, vectors)
        return GuardedTowers(
            towers, self.classes, features=self.features, sizes=sizes, prompt=self.prompt_length, fusion=self.fusion
        )

    def objective(self, purifier: AbstractGuard, lr: float) -> "ShieldObjective":
        """Return the guarded model in training, with the weights of its start."""
        assert isinstance(purifier, GuardedTowers)
        if sha256(self.network.path(self.start)) != self.start_sha256:
            raise InputError(
                f"expected the weights that this shield began with in {self.network.path(self.start)}, got others; "
                "start anew"
            )
        purifier.begin(self.network.read(self.start))
        return ShieldObjective(self, purifier, lr)


class ShieldObjective(AbstractObjective):
    """The worst images near a batch, then a step on them; the towers stay as they are."""

    def __init__(self, config: Shield, purifier: GuardedTowers, lr: float) -> None:
        super().__init__()
        self.config = config
        self.purifier: GuardedTowers = purifier
        purifier.towers.requires_grad_(False)
        self.optimizers = [torch.optim.Adam([p for p in purifier.parameters() if p.requires_grad], lr=lr)]

    def step(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, done: float, draw: Draw
    ) -> dict[str, float]:
        """Take one step."""
        worst = self.attacked(images, labels, draw)
        guard, config = self.purifier.train(), self.config
        guard.towers.eval()  # nothing of the frozen towers shall draw or drop
        parts = self.losses(worst, labels)
        weights = {"reconstruction": config.alpha, "image": config.lam, "text": config.mu}
        loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
        descend(loss, self.optimizers[0])
        return {"loss": float(loss.detach())} | {name: float(part.detach()) for name, part in parts.items()}

    def losses(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> dict[str, Float[Tensor, ""]]:
        """Return the parts of the loss, unweighted but for the commitment; adapts the codebook."""
        guard = self.purifier
        texts = guard.texts()
        with torch.no_grad():
            seen, grid = guard.look(images)
        parts = {}
        logits = guard.logits(seen, texts)
        if guard.shield is not None:
            rebuilt, commitment = guard.shield.learn(grid)
            drawn = guard.shield.projected(rebuilt)
            logits = (1 - guard.fusion) * logits + guard.fusion * guard.logits(drawn, texts)
            parts["reconstruction"] = F.mse_loss(rebuilt, grid)
            parts["image"] = F.l1_loss(F.normalize(drawn, dim=-1), F.normalize(seen, dim=-1))
            if guard.shield.codebook is not None:
                parts["commitment"] = commitment
        parts["text"] = F.l1_loss(texts, guard.get_buffer("spoken"))
        return {"cross_entropy": F.cross_entropy(logits, labels)} | parts

    def attacked(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], draw: Draw
    ) -> Float[Tensor, "n c h w"]:
        """Return the images near these, in [0, 1], that are named worst."""
        guard = self.purifier.eval()
        with torch.no_grad():
            texts = guard.texts()

        def errors(x: Tensor) -> Tensor:
            return F.cross_entropy(guard.fused(x, texts), labels, reduction="none")

        gen = generator("shield", repr(draw.seed))
        return ascend(errors, Ball(images, self.config.eps / 255), self.config.pace(), gen)


def shield_from(
    start: str | os.PathLike[str], classes: tuple[str, ...], *, network: Towers | OpenClip, **choices: Any
) -> Shield:
    """Return the shield of a model.

    Args:
        start: Run folder of kind towers, or a file of open_clip's weights.
        classes: Names of the data's classes.
        network: What lies there; `edgeq.purifiers.towers_of` finds it for a run folder.
        choices: Other fields of `Shield`.
    """
    return Shield(str(start), sha256(network.path(start)), network, classes, **choices)
