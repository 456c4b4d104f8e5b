"""Fold a layer and its BatchNorm into what the device runs: integer weights, integer bias, short multiplier.

A layer computes r = gain * (w . x) + shift, with gain and shift from BatchNorm's running statistics (or 1 and the
layer's bias). With x = s_in * q_x and r = s_out * code,

    code = round(M * (q_w . q_x) + shift / s_out),   M = s_in * s_w * |gain| / s_out,   q_w = round(w sign(gain) / s_w)

M becomes the short multiplier M' = m 2^-n. So that nothing but rounding changes, the weights are then rounded with the
step that M' implies, s_w' = s_w * M' / M, and the bias becomes round(shift / (s_out * M')). Engines that add biases in
float hold b * M' in 24 bits: where m * |b| passes 2^24 (a channel whose offset alone is wider than the output's range),
b is rounded to a multiple of the power of two that lets it fit.

All of it runs in float64, so a CPU and a GPU arrive at the same integers, and with straight-through gradients, so this
*is* the forward pass of evaluation, of attacks, and of the last training stage. `edgeq.export.lower` calls this same
function.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeq.export.multiplier import FLOAT32_EXACT
from edgeq.quant.quantizer import quantize, round_ste, snap

BIAS_LIMIT = 2**30  # keeps bias + products inside int32
GAIN_FLOOR = 1e-12  # a channel that BatchNorm switched off: all its weights become 0


@dataclass(frozen=True)
class Folded:
    """A layer in the code domain: output code = clamp(half_even((weight . x + bias) * multiplier)).

    Attributes:
        weight: Integer-valued weight codes.
        bias: Integer-valued bias, one per output channel.
        multiplier: m * 2^-n per output channel.
        shift: n.
    """

    weight: Float[Tensor, "out inputs *kernel"]
    bias: Float[Tensor, " out"]
    multiplier: Float[Tensor, " out"]
    shift: int


@dataclass(frozen=True)
class Affine:
    """What follows the weights in real numbers: r = gain * (w . x) + shift, per output channel."""

    gain: Float[Tensor, " out"]
    shift: Float[Tensor, " out"]


def batchnorm_affine(norm: torch.nn.BatchNorm2d | torch.nn.BatchNorm1d, bias: Float[Tensor, " out"] | None) -> Affine:
    """Return BatchNorm with its running statistics as gain and shift (the layer's own bias included)."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    mean = norm.running_mean.double() if bias is None else norm.running_mean.double() - bias.double()
    return Affine(gain, norm.bias.double() - mean * gain)


@dataclass(frozen=True)
class Implied:
    """A layer's multipliers, and the weight steps that they imply.

    Attributes:
        affine: Gain and shift per output channel.
        out_step: Output step.
        multiplier: m * 2^-n per output channel.
        step: Step of the weights with the sign of the gain; 1 where the channel is switched off.
        alive: Whether the channel is not switched off.
        shift: n.
    """

    affine: Affine
    out_step: Float[Tensor, "*one"]
    multiplier: Float[Tensor, " out"]
    step: Float[Tensor, " out"]
    alive: Bool[Tensor, " out"]
    shift: int


def implied(affine: Affine, *, steps: tuple[Tensor, Tensor, Tensor], shift: int, snapped: bool = True) -> Implied:
    """Return the short multipliers and the weight steps that they imply.

    Args:
        affine: Gain and shift per output channel.
        steps: (s_in, s_w, s_out): input step, weight steps (one per channel or one in all), output step.
        shift: n of the short multipliers.
        snapped: False keeps the exact multiplier, to measure what snapping costs.
    """
    s_in, s_w, s_out = (s.double() for s in steps)
    magnitude = affine.gain.abs().clamp_min(GAIN_FLOOR)
    exact = s_in * s_w * magnitude / s_out
    multiplier = snap(exact, shift) if snapped else exact
    step = s_w * multiplier / exact * affine.gain.sign()
    alive = affine.gain.abs() > GAIN_FLOOR
    return Implied(affine, s_out, multiplier, step.where(alive, torch.ones_like(step)), alive, shift)


def fold(weight: Float[Tensor, "out inputs *kernel"], onto: Implied, *, weight_range: tuple[int, int]) -> Folded:
    """Return the layer in the code domain; see the module docstring for the formulas.

    Args:
        weight: Float weights.
        onto: Multipliers and steps.
        weight_range: Smallest and largest weight code.
    """
    axes = (-1,) + (1,) * (weight.dim() - 1)
    lo, hi = weight_range
    codes = torch.where(onto.alive.reshape(axes), weight.double() / onto.step.reshape(axes), 0.0)
    bias = (onto.affine.shift / (onto.out_step * onto.multiplier)).clamp(-BIAS_LIMIT, BIAS_LIMIT)
    grain = _grain(bias.detach(), onto.multiplier.detach() * 2.0**onto.shift)
    return Folded(quantize(codes, lo, hi), round_ste(bias / grain) * grain, onto.multiplier, onto.shift)


def _grain(bias: Float[Tensor, " out"], m: Float[Tensor, " out"]) -> Float[Tensor, " out"]:
    """Return the power of two that biases are multiples of, so that 24 bits hold m times a bias: 1 for nearly all."""
    room = FLOAT32_EXACT - m / 2  # rounding adds half a multiplier at most
    return torch.exp2(torch.log2((bias.abs() * m / room).clamp_min(1.0)).ceil())
