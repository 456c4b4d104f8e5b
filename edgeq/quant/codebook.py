"""The nearest codeword, in real numbers and in integers: what lies between the halves of a vector-quantized network.

    argmin_k |z - e_k|^2  =  argmax_k  2 z . e_k - |e_k|^2      (the lowest k of equals)

With z = s_z q_z and codewords e_k = s_e q_k, one step for all of them, half of that over s_z s_e is

    q_z . q_k + b_k,     b_k = -round(s_e |q_k|^2 / (2 s_z))

so the choice needs int8 products, an int32 sum and an argmax, the same on every engine. What goes on are the q_k
themselves, worth s_e: nothing has to be calibrated, and where the choice is the float network's, all that rounding did
before it is gone. Codewords have 8 bits at every width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from edgeq.errors import InputError
from edgeq.export.multiplier import FLOAT32_EXACT
from edgeq.quant.bits import Width, weight_range
from edgeq.quant.exact import exact_conv2d
from edgeq.quant.fold import BIAS_LIMIT
from edgeq.quant.quantizer import SCALE_FLOOR
from edgeq.quant.units import AbstractUnit, Output, Value

WORD_BITS = 8
SCORES = 1 << 26  # at once


class Codewords(nn.Module):
    """Replace the vector of channels at every place by the nearest of some codewords; gradients pass straight through.

    Args:
        words: The codewords, which stay as they are.
    """

    def __init__(self, words: Float[Tensor, "k d"]) -> None:
        super().__init__()
        if not len(words) or not torch.isfinite(words).all():
            raise InputError(f"expected codewords of finite numbers, one or more, got {len(words)}; train them first")
        self.words: Tensor
        self.register_buffer("words", words.detach().clone())

    def forward(self, latent: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
        """Look the nearest codeword up."""
        return nearest(latent, self.words)


def scores(latent: Float[Tensor, "n d h w"], words: Float[Tensor, "k d"]) -> Float[Tensor, "n k h w"]:
    """Return 2 z . e_k - |e_k|^2."""
    return F.conv2d(latent, 2 * words[:, :, None, None], -words.square().sum(1))


def nearest(latent: Float[Tensor, "n d h w"], words: Float[Tensor, "k d"]) -> Float[Tensor, "n d h w"]:
    """Return the nearest codewords; the gradient is the latent's."""
    found = spread(numbered(latent, words), words)
    return latent + (found - latent).detach()


@torch.no_grad()
def numbered(latent: Float[Tensor, "n d h w"], words: Float[Tensor, "k d"]) -> Int64[Tensor, "n h w"]:
    """Return the numbers of the nearest codewords; a few rows at once where many would fill the memory."""
    rows = max(1, SCORES // max(1, len(latent) * latent.shape[3] * len(words)))
    return torch.cat([scores(part, words).argmax(1) for part in latent.split(rows, 2)], 1)


def word_step(words: Float[Tensor, "k d"]) -> float:
    """Return s_e: the largest number of all codewords is the largest code."""
    return max(float(words.detach().abs().amax()) / weight_range(WORD_BITS)[1], SCALE_FLOOR)


def spread(numbers: Int64[Tensor, "n h w"], words: Float[Tensor, "k d"]) -> Float[Tensor, "n d h w"]:
    """Return the codewords of these numbers as channels."""
    return F.embedding(numbers, words).permute(0, 3, 1, 2)


class CodebookUnit(AbstractUnit):
    """The nearest codeword; the output's grid is that of the codewords, with the step `word_step`."""

    def __init__(self, width: Width, output: Output, *, words: Float[Tensor, "k d"]) -> None:
        super().__init__(width, output)
        self.words: Tensor
        self.register_buffer("words", words.detach().clone())

    @torch.no_grad()
    def scored(self, in_step: Float[Tensor, ""]) -> tuple[Float64[Tensor, "k d"], Float64[Tensor, " k"]]:
        """Return the integers that score a vector of codes: codewords and biases, on the CPU."""
        step = word_step(self.words)
        codes = (self.words.detach().cpu().double() / step).round().clamp(*weight_range(WORD_BITS))
        bias = -(step * codes.square().sum(1) / (2 * in_step.detach().cpu().double())).round()
        return codes, bias.clamp(-BIAS_LIMIT, BIAS_LIMIT)

    @torch.no_grad()
    def chosen(self, x: Value) -> Float[Tensor, "n d h w"]:
        """Return the codes of the nearest codewords, in integers."""
        assert x.step is not None
        weight, bias = (part.to(x.codes.device) for part in self.scored(x.step))
        kernel = weight.to(x.codes.dtype)[:, :, None, None]
        one, none = (1, 1), (0, 0)
        found = exact_conv2d(x.codes, kernel, reach=x.reach, stride=one, padding=none, dilation=one, groups=1)
        largest = float(found.abs().max()) + float(bias.abs().max()) if found.numel() else 0.0
        found = found.double() if largest > FLOAT32_EXACT else found
        return spread((found + bias.to(found.dtype)[:, None, None]).argmax(1), weight.to(x.codes.dtype))

    def forward(self, *inputs: Value) -> Value:
        """Look up; gradients pass straight through."""
        (x,) = inputs
        if x.step is None:
            return Value(nearest(x.codes, self.words), None)
        assert self.output is not None
        out = self.out_step()
        if not self.deployed:
            return self._land(nearest(x.real, self.words) / out, out)
        codes = self.chosen(x)
        if torch.is_grad_enabled() and x.codes.requires_grad:
            smooth = x.real / out
            codes = smooth + (codes - smooth).detach()
        lo, hi = self.output.range(self.width.bits)
        return Value(codes, out, max(hi, -lo), self.output.grid)
