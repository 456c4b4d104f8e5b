"""TriQDef (arXiv 2508.12132): training on patches, and penalties on what the widths have in common under them.

    L = L_clean + lambda_adv L_adv + lambda_FDP FDP + lambda_GPDP GPDP

FDP compares the widths' feature maps, GPDP their input gradients g_b = grad_x CE(f_b(x_adv), y), each in edges and
orientations (`edgeq.perceptual`), both on patched images only. The curriculum (BACT) is `edgeq.curriculum`.

What it costs is nearly all GPDP's double backward, so:

* features come from the forward pass that the cross-entropy needs anyway;
* the input gradients are those of the deployed arithmetic, where BatchNorm is folded into the weights. That is what an
  attacker of the shipped network follows, and its double backward takes half the time of that through BatchNorm with
  batch statistics;
* one double backward serves all widths and pairs: the penalties are summed before it;
* penalties are estimated on a share of the patched images (half, by default);
* `pairs` compares so many random pairs of widths a step instead of all, and takes gradients at their widths alone.
  The expected penalty is that of all pairs. Where pairs take turns (`Turns`), a step has no other widths at all.

A double backward's gradient is now and then ten times its usual size, and one such step ruins a network whose
statistics are frozen: `clip` bounds it (in patch-at, too, so that the two differ by the penalties alone).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.attacks import surrogate
from edgeq.attacks.patch import as_float
from edgeq.data.seeds import generator
from edgeq.defenses.base import NO_KEY, Key, Losses
from edgeq.defenses.patch_at import cross_entropies
from edgeq.defenses.patches import AbstractPatchedObjective, Patches
from edgeq.defenses.turns import ALL, Turns
from edgeq.errors import InputError
from edgeq.perceptual import Alignment, all_pairs, fdp, feature_taps, gpdp, sample_pairs
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet


@dataclass(frozen=True)
class TriQDef:
    """The penalties' choices.

    Attributes:
        lambda_fdp: Weight of the features' penalty; 0 leaves it out.
        lambda_gpdp: Weight of the gradients' penalty; 0 leaves it out.
        pairs: Random pairs of widths compared in a step; 0 for all.
        share: Share of the patched images that the penalties are computed on.
        taps: Steps of the network whose features are compared; the ends of its early and middle stages by default.
        alignment: What counts as alike.
        clip: Largest norm of a step's gradient, all weights together; 0 for any.
    """

    lambda_fdp: float = 0.8
    lambda_gpdp: float = 0.5
    pairs: int = 0
    share: float = 0.5
    taps: tuple[str, ...] = ()
    alignment: Alignment = field(default_factory=Alignment)
    clip: float = 3.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        object.__setattr__(self, "taps", tuple(self.taps))
        if not 0.0 <= self.lambda_fdp < float("inf") or not 0.0 <= self.lambda_gpdp < float("inf"):
            raise InputError(
                f"expected lambda_fdp and lambda_gpdp of 0 or more, got {self.lambda_fdp} and {self.lambda_gpdp}"
            )
        if self.pairs < 0:
            raise InputError(f"expected pairs of 1 or more, or 0 for all of them, got {self.pairs}")
        if not 0.0 <= self.clip < float("inf"):
            raise InputError(f"expected clip of 0 (none) or more, got {self.clip}; 3 is usual")
        if not 0.0 < self.share <= 1.0:
            raise InputError(f"expected share above 0 and up to 1 (of the patched images), got {self.share}")


class TriQDefObjective(AbstractPatchedObjective):
    """See the module docstring."""

    def __init__(
        self, net: MultiBitNet, patches: Patches, choices: TriQDef, turns: Turns = ALL, *, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(net, patches, turns, label_smoothing=label_smoothing, clip=choices.clip)
        self.choices = choices
        self.taps: tuple[str, ...] = feature_taps(net, choices.taps) if choices.lambda_fdp else ()

    def forward(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        active: tuple[int, ...],
        key: Key = NO_KEY,
    ) -> Losses:
        """Return `loss`, `ce_8`, …, `adv` as patch-at does, and the penalties `fdp` and `gpdp`."""
        active = self.turns.drawn(active, key)
        patched = self.patcher.on(images, labels, active, key)
        compared = round(self.choices.share * len(patched))
        widths, pairs = self._pairs(active, key) if compared else ((), torch.empty(0, 2, dtype=torch.int64))
        rows = slice(len(images), len(images) + compared)
        shown = torch.cat([images, patched])
        logits, features = self._forward(shown, active, widths, rows)
        losses = cross_entropies(logits, labels, self.patcher.choices.lambda_adv, self.label_smoothing)
        if not widths:
            return losses
        choices = self.choices
        if choices.lambda_fdp:
            penalty = fdp(features, choices.alignment, pairs=pairs)
            losses |= {"loss": losses["loss"] + choices.lambda_fdp * penalty, "fdp": penalty.detach()}
        if choices.lambda_gpdp:
            gradients = input_gradients(self.net, patched[:compared], labels[:compared], widths)
            penalty = gpdp(gradients, choices.alignment, pairs=pairs)
            losses |= {"loss": losses["loss"] + choices.lambda_gpdp * penalty, "gpdp": penalty.detach()}
        return losses

    def _pairs(self, active: tuple[int, ...], key: Key) -> tuple[tuple[int, ...], Int64[Tensor, "pairs 2"]]:
        """Return the widths that are compared and the pairs, as positions in them; the same in every process."""
        count = len(active)
        gen = generator("pairs", *key[:3])
        pairs = sample_pairs(count, self.choices.pairs, gen) if self.choices.pairs else all_pairs(count)
        used, positions = pairs.unique(return_inverse=True)
        return tuple(active[i] for i in used.tolist()), positions

    def _forward(
        self, shown: Tensor, active: tuple[int, ...], widths: tuple[int, ...], rows: slice
    ) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Return every width's logits, and for each tap the compared widths' features of some rows."""
        logits: dict[int, Tensor] = {}
        maps: list[list[Tensor]] = []
        for bits in active:
            keep = self.taps if bits in widths else ()
            with at_bits(self.net, bits):
                values = self.net.values(shown, keep=keep)
            logits[bits] = values[self.net.names[-1]].real
            if keep:
                kept = [values[name] for name in keep]
                maps.append([v._replace(codes=_Rows.apply(v.codes, rows.start, rows.stop)).real for v in kept])
        return logits, [torch.stack(tap) for tap in zip(*maps, strict=True)]


class _Rows(torch.autograd.Function):
    """Rows of a batch of maps, whose gradient keeps the layout of the maps.

    The penalty's gradient comes back with its channels apart. A plain slice would pass that layout on, and all of the
    backward pass behind the tap would run in it, at half the speed.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, start: int, stop: int) -> Tensor:
        ctx.rows, ctx.shape = slice(start, stop), maps.shape
        return maps[start:stop].clone()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        whole = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last).zero_()
        whole[ctx.rows] = grad
        return whole, None, None


def input_gradients(
    net: MultiBitNet, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], widths: tuple[int, ...]
) -> Float[Tensor, "widths n c h w"]:
    """Return each width's input gradients of the cross-entropy in the deployed arithmetic, with a graph of their own.

    In full precision: bf16 has too few bits for a derivative of a derivative.
    """
    gradients = []
    with torch.autocast(images.device.type, enabled=False):
        for bits in widths:
            x = as_float(images).requires_grad_()
            loss = F.cross_entropy(surrogate(net, bits)(x), labels, reduction="sum")
            gradients.append(torch.autograd.grad(loss, x, create_graph=True)[0])
    return torch.stack(gradients)
