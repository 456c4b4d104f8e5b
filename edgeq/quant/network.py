"""The multi-bit network: a list of steps over shared weights, run at whichever width is active."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from edgeq.quant.bits import FLOAT_BITS, Width
from edgeq.quant.grid import Grid
from edgeq.quant.units import AbstractUnit, Value
from edgeq.quant.weighted import WeightedUnit

IMAGE = "image"


@dataclass(frozen=True)
class QuantConfig:
    """How a network becomes a multi-bit one.

    Attributes:
        bits: The widths, any of 2...8 and 32.
        batchnorm: "per-bit" (default) or "shared".
        scales: "learned" (LSQ) or "observer" (running maxima).
        edge_bits: Width of the first and last layer where the rest goes lower; 0 gives them the network's width.
        full_range: Allow the weight code -2^(b-1) too.
        layer_bits: Bits of single layers at a width, for their weights and the codes that they read, or a pair of
            numbers for the two; see `edgeq.quant.layer_bits`. Afterwards pairs throughout.
    """

    bits: tuple[int, ...] = (32, 8, 5, 4, 2)
    batchnorm: str = "per-bit"
    scales: str = "learned"
    edge_bits: int = 8
    full_range: bool = False
    layer_bits: Mapping[int, Mapping[str, int | tuple[int, int]]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the choices."""
        from edgeq.errors import InputError
        from edgeq.quant.bits import check_bits
        from edgeq.quant.layer_bits import checked

        object.__setattr__(self, "bits", check_bits(tuple(self.bits)))
        if self.batchnorm not in ("per-bit", "shared"):
            raise InputError(f"expected batchnorm 'per-bit' or 'shared', got {self.batchnorm!r}")
        if self.scales not in ("learned", "observer"):
            raise InputError(f"expected scales 'learned' or 'observer', got {self.scales!r}")
        if self.edge_bits != 0 and not 2 <= self.edge_bits <= 8:
            raise InputError(f"expected edge_bits from 2 to 8, or 0 to turn them off, got {self.edge_bits}")
        object.__setattr__(self, "layer_bits", checked(self.layer_bits))
        strange = [b for b in self.layer_bits if b not in self.bits]
        if strange:
            raise InputError(
                f"expected settings of layer_bits out of the network's widths {list(self.bits)}, got {strange[0]}; add "
                "it to the widths (--bits)"
            )

    def plain(self) -> dict[str, Any]:
        """Return the choices as JSON has them; `layer_bits` only where a layer is named, as before there were any."""
        fields = {**asdict(self), "bits": list(self.bits)}
        return {name: value for name, value in fields.items() if name != "layer_bits" or value}


@dataclass(frozen=True)
class Step:
    """One operator of the network: its name (and that of its result) and the results it reads."""

    name: str
    inputs: tuple[str, ...]


class MultiBitNet(nn.Module):
    """One shared float backbone that runs at several bit-widths; made by `edgeq.multibit`.

    In training mode it uses ordinary fake quantization with batch statistics, in evaluation mode the deployed integer
    arithmetic. `edgeq.at_bits(model, b)` chooses the width.
    """

    def __init__(
        self,
        *,
        config: QuantConfig,
        width: Width,
        steps: tuple[Step, ...],
        units: dict[str, AbstractUnit],
        grids: dict[str, Grid],
        image_shape: tuple[int, int, int],
        output_shape: tuple[int, ...],
        draws: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.bits = config.bits
        self.width = width
        self.steps = steps
        self.image_shape = image_shape
        self.output_shape = output_shape  # of one image's logits: (classes,), or (classes, height, width)
        self.draws = draws  # an image takes the place of logits
        self.units = nn.ModuleDict(units)
        self.grids = nn.ModuleDict(grids)
        last_use = {name: i for i, step in enumerate(steps) for name in step.inputs}
        self._dead_after = [
            tuple(n for n in dict.fromkeys(step.inputs) if last_use[n] == i) for i, step in enumerate(steps)
        ]

    def forward(self, image: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes *plane"]:
        """Return the logits at the active width; images are uint8, or floats in [0, 1]."""
        return self.values(image)[self.steps[-1].name].real

    def values(
        self, image: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"], keep: Iterable[str] = ()
    ) -> dict[str, Value]:
        """Return the logits' value and those of the steps named in `keep` (all of them: `keep=model.names`)."""
        wanted = {*keep, self.steps[-1].name}
        values = {IMAGE: Value(image, None)}
        for step, dead in zip(self.steps, self._dead_after, strict=True):
            values[step.name] = self.units[step.name](*(values[name] for name in step.inputs))
            for name in dead:
                if name not in wanted:
                    del values[name]
        return {name: value for name, value in values.items() if name in wanted}

    @property
    def names(self) -> tuple[str, ...]:
        """The steps' names, in order."""
        return tuple(step.name for step in self.steps)

    def weighted(self) -> dict[str, WeightedUnit]:
        """Return the convolutions and linear layers by name."""
        return {name: unit for name, unit in self.units.items() if isinstance(unit, WeightedUnit)}

    def grid(self, name: str) -> Grid:
        """Return the steps of an edge by the name of the operator that owns it."""
        found = self.grids[name]
        assert isinstance(found, Grid)
        return found

    def quantized_bits(self) -> tuple[int, ...]:
        """Return the widths below 32."""
        return tuple(b for b in self.bits if b != FLOAT_BITS)

    @torch.no_grad()
    def predict(self, images: UInt8[Tensor, "n c h w"], *, batch_size: int = 500) -> Float[Tensor, "n classes *plane"]:
        """Return the logits of many images in evaluation mode, batch by batch; the model's mode is put back."""
        before = self.training
        self.eval()
        try:
            return torch.cat([self(part) for part in images.split(batch_size)])
        finally:
            self.train(before)
