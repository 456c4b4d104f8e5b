"""All choices of a training run, as one frozen object; the command line and config.json mirror it."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgeq.curriculum import Curriculum
from edgeq.defenses import DEFENSES, DWQ, Patches, Standard, TriQDef, Turns
from edgeq.errors import InputError
from edgeq.quant.network import QuantConfig

SEEDS = range(-(1 << 63), 1 << 64)  # what torch.manual_seed takes


@dataclass(frozen=True)
class TrainConfig:
    """All choices of a training run.

    Attributes:
        data: Data specification, see `edgeq.data.load`.
        model: Network, see `edgeq.models.build`.
        defense: Objective.
        quant: Widths, BatchNorm, scales.
        epochs: Passes over the training images.
        batch_size: Over all processes.
        lr: Peak learning rate.
        schedule: "cosine" with a short warm-up, or "step" (divided by 10 at 50 % and 75 %, as in the paper).
        weight_decay: Of the weights; steps and BatchNorm have none.
        deployed: Fraction of the epochs, at the end, that train in the deployed arithmetic; 0 turns it off.
        curriculum: When the widths enter.
        turns: Which widths a step has; standard's default is one, in turns, patch-at's and triqdef's all of them.
        standard: Choices of the standard objective; its label smoothing holds for every defence.
        patches: The patches of patch-at, triqdef and pbat.
        triqdef: Choices of triqdef's penalties.
        dwq: Choices of dwq's attack.
        crop: Padding of the random crop in pixels.
        cutout: Side of the square that is blanked, in pixels; 0 for none.
        ema: Decay of an averaged copy that replaces the weights at the end; 0 for none.
        seed: Decides initial weights, order, augmentation.
        precision: "32" or "bf16".
        device: "auto", "cpu" or "cuda".
        save_every: Seconds between saves within an epoch.
    """

    data: str = "signs"
    model: str = "resnet8"
    defense: str = "standard"
    quant: QuantConfig = field(default_factory=QuantConfig)
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    schedule: Literal["cosine", "step"] = "cosine"
    weight_decay: float = 5e-4
    deployed: float = 0.1
    curriculum: Curriculum = field(default_factory=Curriculum)
    turns: Turns | None = None
    standard: Standard = field(default_factory=Standard)
    patches: Patches = field(default_factory=Patches)
    triqdef: TriQDef = field(default_factory=TriQDef)
    dwq: DWQ = field(default_factory=DWQ)
    crop: int = 4
    cutout: int = 0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["32", "bf16"] = "32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: float = 60.0

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        if self.defense not in DEFENSES:
            raise InputError(f"expected a defence out of {', '.join(DEFENSES)}, got {self.defense!r}")
        self._check_step()
        if self.epochs < 1 or self.batch_size < 2:
            raise InputError(f"expected at least 1 epoch and batches of 2, got {self.epochs} and {self.batch_size}")
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf:
            raise InputError(f"expected lr > 0 and weight_decay >= 0, got {self.lr} and {self.weight_decay}")
        if self.seed not in SEEDS:
            raise InputError(f"expected a seed from {SEEDS[0]} to {SEEDS[-1]}, got {self.seed}; choose another")
        if not 0 <= self.save_every < math.inf:
            raise InputError(f"expected save_every in seconds, 0 or more, got {self.save_every}; 60 are usual")
        if not 0.0 <= self.deployed < 1.0 or not 0.0 <= self.ema < 1.0:
            raise InputError(f"expected deployed and ema from 0 to below 1, got {self.deployed} and {self.ema}")
        if self.schedule not in ("cosine", "step"):
            raise InputError(f"expected schedule cosine or step, got {self.schedule!r}")
        if self.precision not in ("32", "bf16"):
            raise InputError(f"expected precision 32 or bf16, got {self.precision!r}")
        if self.defense in ("patch-at", "triqdef"):
            self.patches.check_epochs(self.epochs)
        if self.defense == "pbat" and len(self.quant.bits) != 1:
            raise InputError(
                f"expected one width with defense pbat, got {list(self.quant.bits)}; train one run per width, "
                "for example --bits 4"
            )

    def _check_step(self) -> None:
        """Check that the defence can use the widths that a step has."""
        widths = None if self.turns is None else self.turns.widths
        if self.standard.distill and self.defense != "standard":
            raise InputError(
                f"expected no distill with defense {self.defense}, got {self.standard.distill}; leave it out"
            )
        if self.standard.distill and widths in (None, 1):
            raise InputError(
                f"expected no distillation where widths take turns, got distill {self.standard.distill}: the teacher "
                "must be in the step; choose 0 or 2 and more widths per step"
            )
        if widths is not None and self.defense in ("dwq", "pbat"):
            raise InputError(
                f"expected no widths per step with defense {self.defense}, got {widths}: it trains one; leave it out"
            )
        compared = round(self.triqdef.share * round(self.patches.rho * self.batch_size))
        alignment = self.triqdef.alignment
        if self.defense == "triqdef" and (alignment.excess or alignment.centred) and compared < 2:
            raise InputError(
                "expected excess and centred penalties on 2 or more patched images of a batch, which they compare, got "
                f"{compared}; raise batch_size, rho or the penalties' share"
            )
        if widths == 1 and self.defense == "triqdef":
            raise InputError(
                "expected 0 or 2 and more widths per step with defense triqdef, which compares them, got 1"
            )


def plain(config: TrainConfig) -> dict[str, Any]:
    """Return the choices as JSON has them."""
    return json.loads(json.dumps({**asdict(config), "quant": config.quant.plain()}))
