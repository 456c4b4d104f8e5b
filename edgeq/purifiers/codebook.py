"""Discrete bottlenecks: a learned codebook, or finite scalar quantization (FSQ, arXiv 2309.15505).

The nearest codeword is chosen in the form that integer arithmetic keeps,

    argmin_k |z - e_k|^2  =  argmax_k  2 z . e_k - |e_k|^2      (the lowest k of equals),

one 1x1 convolution and an argmax. In evaluation the gradient passes straight through the choice; with a temperature
t > 0 the result is softmax((2 z . e_k - |e_k|^2) / t) e_k instead, which an attacker can differentiate and anneal.

Training is that of vector-quantize-pytorch: codewords follow their vectors by a moving average, start from k-means of
the first batch, and those that nothing chooses any more start again from random vectors of the batch.
"""

import math
from abc import ABC, abstractmethod
from typing import no_type_check

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from edgeq.quant.codebook import Codewords, nearest, numbered, scores
from edgeq.quant.tables import Levels, bounded

Latent = Float[Tensor, "n d h w"]

DECAY = 0.99  # the package's 0.8 forgets the codebook within a few batches
RESTART = 0.05  # a code chosen less often than this fraction of the mean starts again


class AbstractBottleneck(nn.Module, ABC):
    """Vectors to codewords.

    Attributes:
        codes: Number of codewords.
        dim: Length of a vector.
    """

    codes: int
    dim: int

    @abstractmethod
    def learn(self, latent: Latent) -> tuple[Latent, Float[Tensor, ""]]:
        """Return the codewords (gradients straight through) and the bottleneck's own loss, and adapt the codebook."""

    @abstractmethod
    def choose(self, latent: Latent, temperature: float) -> Latent:
        """Return the codewords, or soft mixtures of them at a temperature above 0."""

    @abstractmethod
    def indices(self, latent: Latent) -> Int64[Tensor, "n h w"]:
        """Return the number of the codeword at each place."""

    @abstractmethod
    def numbers(self, words: Latent) -> Int64[Tensor, "n h w"]:
        """Return the numbers of codewords, which may be rounded a little."""

    @abstractmethod
    def operator(self) -> nn.Module:
        """Return the choice as what `edgeq.multibit` turns into integers."""


class Codebook(AbstractBottleneck):
    """Learned codewords.

    Args:
        codes: How many.
        dim: Their length.
        beta: Weight of the commitment loss |z - sg(e)|^2.
        vectors: Vectors in a training batch, from which a dead code is known.
    """

    def __init__(self, codes: int, dim: int, *, beta: float, vectors: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.codes, self.dim = codes, dim
        self.quantizer = VectorQuantize(
            dim,
            codes,
            decay=DECAY,
            kmeans_init=True,
            threshold_ema_dead_code=RESTART * vectors / codes,  # type: ignore[arg-type]
            commitment_weight=beta,
            rotation_trick=False,
            accept_image_fmap=True,
        )

    def learn(self, latent: Latent) -> tuple[Latent, Float[Tensor, ""]]:
        """Quantize and move the codebook."""
        quantized, _, loss = self.quantizer(latent)
        return quantized, loss.reshape(())

    def choose(self, latent: Latent, temperature: float) -> Latent:
        """Look the nearest codeword up."""
        if temperature > 0:
            return torch.einsum("nkhw,kd->ndhw", (self.scores(latent) / temperature).softmax(1), self.words)
        return nearest(latent, self.words)

    def indices(self, latent: Latent) -> Int64[Tensor, "n h w"]:
        """Return the nearest codeword's number."""
        return numbered(latent, self.words)

    def numbers(self, words: Latent) -> Int64[Tensor, "n h w"]:
        """Return the numbers of the nearest ones."""
        return self.indices(words)

    def operator(self) -> nn.Module:
        """Return the search."""
        return Codewords(self.words)

    def scores(self, latent: Latent) -> Float[Tensor, "n k h w"]:
        """Return 2 z . e_k - |e_k|^2."""
        return scores(latent, self.words)

    @property
    def words(self) -> Float[Tensor, "k d"]:
        """The codewords."""
        return self.quantizer.codebook.detach()


class EachLevels(nn.Module):
    """FSQ's rounding with levels of its own for every channel."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = nn.ModuleList(Levels(count) for count in levels)

    @no_type_check  # torch.fx calls it with proxies
    def forward(self, latent: Latent) -> Latent:
        """Round."""
        return torch.cat([rounded(latent[:, i : i + 1]) for i, rounded in enumerate(self.channels)], 1)


class FSQ(AbstractBottleneck):
    """Each channel rounds to a few levels: no codebook, no loss, no search, and every code in use.

    Args:
        levels: Levels of each channel; the product is the number of codes.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ as Quantizer

        self.quantizer = Quantizer(list(levels))
        self.codes, self.dim = int(self.quantizer.codebook_size), len(levels)
        self.levels = levels

    def learn(self, latent: Latent) -> tuple[Latent, Float[Tensor, ""]]:
        """Round; FSQ has nothing to learn."""
        return self.quantizer(latent)[0], latent.new_zeros(())

    def choose(self, latent: Latent, temperature: float) -> Latent:
        """Round, or mix neighbouring levels softly."""
        if temperature <= 0:
            return self.quantizer(latent)[0]
        return torch.stack([self._soft(latent[:, i], i, temperature) for i in range(self.dim)], 1)

    def indices(self, latent: Latent) -> Int64[Tensor, "n h w"]:
        """Return the code's number."""
        return self.quantizer(latent)[1].long()

    def numbers(self, words: Latent) -> Int64[Tensor, "n h w"]:
        """Return the codes' numbers."""
        levels = [(words[:, i] * (count // 2)).round() + count // 2 for i, count in enumerate(self.levels)]
        places = [math.prod(self.levels[:i]) for i in range(self.dim)]
        return torch.stack([level * place for level, place in zip(levels, places, strict=True)]).sum(0).long()

    def operator(self) -> nn.Module:
        """Return the rounding: of all channels alike, or of each by itself."""
        return Levels(self.levels[0]) if len(set(self.levels)) == 1 else EachLevels(self.levels)

    def _soft(self, channel: Float[Tensor, "n h w"], i: int, temperature: float) -> Float[Tensor, "n h w"]:
        """Mix the levels l of one channel by softmax(-(b - l)^2 / t), b being the bounded value before rounding."""
        count = self.levels[i]
        grid = torch.arange(count, device=channel.device, dtype=channel.dtype) - count // 2
        weights = (-(bounded(channel, count)[..., None] - grid).square() / temperature).softmax(-1)
        return (weights * grid).sum(-1) / (count // 2)
