"""BatchNorm's running statistics of one width, measured again.

Rounding weights and activations moves the mean and the variance of what each layer hands to BatchNorm; at 2 bits by
far more than BatchNorm's running averages, taken from float or from another width, allow for. Measuring them again
needs images only, no labels and no gradients, and costs one forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeq.errors import InputError
from edgeq.quant.batchnorm import WidthNorm
from edgeq.quant.network import MultiBitNet
from edgeq.quant.units import DropoutUnit

from .walk import Images, check_images, check_weights, evaluating, parts

Norm = nn.BatchNorm2d | nn.BatchNorm1d
DEAD = 1e-6  # of a variance: a channel that these images do not move says nothing about how rounding changes it


@dataclass
class Moments:
    """Mean and sum of squared deviations per channel, in float64, merged batch by batch.

    T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Float[Tensor, "n c *space"]) -> None:
        """Merge a batch."""
        axes = [0, *range(2, x.dim())]
        middle = x.detach().mean(axes, keepdim=True)
        variance = (x.detach() - middle).square_().mean(axes).double()  # a third of the time of torch.var_mean
        mean = middle.flatten().double()
        more = x.numel() // x.shape[1]
        total = self.count + more
        off = mean - self.mean.to(mean.device)
        self.squares = self.squares.to(mean.device) + variance * more + off.square() * (self.count * more / total)
        self.mean = self.mean.to(mean.device) + off * (more / total)
        self.count = total

    def check(self, name: str) -> None:
        """Refuse NaN and infinity, naming the layer."""
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.squares).all()):
            raise InputError(
                f"expected finite values before BatchNorm at {name!r}, got NaN or infinity; check the weights"
            )

    @property
    def variance(self) -> Tensor:
        """The unbiased one, as PyTorch's own."""
        return self.squares / max(self.count - 1, 1)


@torch.no_grad()
def store(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Set a BatchNorm's running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def reestimate(
    model: MultiBitNet,
    images: Images,
    *,
    bits: int,
    batch_size: int = 256,
    source: int | None = None,
    beside: dict[str, Moments] | None = None,
) -> None:
    """Measure the running statistics of one width anew on `images`, or what rounding changed of another width's.

    With `source`, the same images go through that width too, and what the two widths' statistics differ by is added
    to those that `source` has: a mean's difference, a variance's ratio. The two share their images and most of their
    noise, so some hundred images do what else needs tens of thousands, and statistics that training gathered over all
    of its images are not given up for those of a few.

    The network runs as in training (fake quantization, statistics of the batch) but without gradients and without
    dropout; affine parameters, steps, modes, the width and `num_batches_tracked` stay as they are. Over all images the
    mean and the variance of what enters each BatchNorm are exact, whatever the batch size: batches are merged with
    their own means, not averaged. Approximated is what enters: the layers before normalise by their batch's
    statistics, not by the final ones, and their multipliers are not snapped. Both vanish with larger batches and short
    steps.

    With shared BatchNorm there is one set of statistics, so this sets it for all widths, 32 included.

    Args:
        model: A multi-bit network.
        images: Bytes, or floats in [0, 1]; at least two.
        bits: The width; 32 is allowed.
        batch_size: Images per forward pass; all batches are nearly equal, and none has a single image.
        source: A width whose statistics are right, for example 32 bits.
        beside: What `measure` returned for that width and these images, where it is at hand.
    """
    moments = measure(model, images, bits=bits, batch_size=batch_size)
    if source is not None and beside is None:
        beside = measure(model, images, bits=source, batch_size=batch_size)
    for name, norm in _norms(model).items():
        settle(norm, bits, moments[name], None if source is None or beside is None else (source, beside[name]))


def settle(norm: WidthNorm, bits: int, moments: Moments, beside: tuple[int, Moments] | None) -> None:
    """Set a width's statistics: what was measured, or what it differs by from another width's on the same images."""
    mean, variance = moments.mean, moments.variance
    if beside is not None:
        source, seen = beside
        known = norm.at(source)
        assert known.running_mean is not None and known.running_var is not None
        mean = known.running_mean.double() + mean - seen.mean
        ratio = variance / seen.variance.clamp_min(torch.finfo(torch.float32).tiny)
        alive = seen.variance > known.running_var.double() * DEAD
        variance = torch.where(alive, known.running_var.double() * ratio, variance)
    store(norm.at(bits), mean, variance)


def _norms(model: MultiBitNet) -> dict[str, WidthNorm]:
    return {name: unit.norm for name, unit in model.weighted().items() if unit.norm is not None}


def measure(model: MultiBitNet, images: Images, *, bits: int, batch_size: int = 256) -> dict[str, Moments]:
    """Return what enters each BatchNorm at a width, layer by layer; nothing changes. Arguments as for `reestimate`."""
    check_images(model, images, batch_size)
    check_weights(model)
    if len(images) < 2 or batch_size < 2:
        raise InputError(
            f"expected 2 images or more per batch, got {min(len(images), batch_size)}; statistics need them"
        )
    norms = _norms(model)
    before = {name: norm.at(bits).state_dict() for name, norm in norms.items()} if bits in model.bits else {}
    before = {name: {key: value.clone() for key, value in state.items()} for name, state in before.items()}
    moments = {name: Moments() for name in norms}
    handles = [norm.register_forward_pre_hook(_adder(moments[name])) for name, norm in norms.items()]
    try:
        with evaluating(model, bits):
            _train_without_dropout(model)
            for part in parts(images, batch_size, least=2):
                model(part.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
        for name, state in before.items():
            norms[name].at(bits).load_state_dict(state)
    for name in norms:
        moments[name].check(name)
    return moments


def _adder(moments: Moments) -> Callable[[nn.Module, tuple], None]:
    return lambda _, args: moments.add(args[0])


def _train_without_dropout(model: MultiBitNet) -> None:
    model.train()
    model.width.deployed = False
    for unit in model.units.values():
        if isinstance(unit, DropoutUnit):
            unit.eval()


def copy_norms(model: MultiBitNet, *, source: int, target: int) -> None:
    """Start a width's BatchNorm (statistics and affine parameters) from another width's."""
    for unit in model.weighted().values():
        if isinstance(unit.norm, WidthNorm):
            unit.norm.at(target).load_state_dict(unit.norm.at(source).state_dict())


def has_own_norms(model: MultiBitNet) -> bool:
    """Whether widths have BatchNorms of their own, so that re-estimating one leaves the others alone."""
    norms = [unit.norm for unit in model.weighted().values() if unit.norm is not None]
    return bool(norms) and not any(norm.shared for norm in norms)
