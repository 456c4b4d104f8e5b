"""All choices of a purifier's training, as one frozen object; the command line and config.json mirror it."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from edgeq.errors import InputError
from edgeq.purifiers.alp import ALP
from edgeq.purifiers.diffusers_vae import DiffusersVAE
from edgeq.purifiers.openclip import OpenClip
from edgeq.purifiers.purevq import PureVQ
from edgeq.purifiers.shield import Shield
from edgeq.purifiers.srl import SRL
from edgeq.purifiers.towers import Towers
from edgeq.purifiers.vae import VAE

Method = PureVQ | ALP | VAE | SRL | Towers | Shield
METHODS: tuple[type[Method], ...] = (PureVQ, ALP, VAE, SRL, Towers, Shield)


@dataclass(frozen=True)
class PurifierConfig:
    """All choices of a purifier's or a shield's training.

    Attributes:
        method: What is trained, with its own choices.
        data: Data specification, see `edgeq.data.load`; purifiers do not look at the labels.
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Adam's peak rate, the paper's; it falls to 0 along a half cosine.
        seed: Decides initial weights, order, noise.
        device: "auto", "cpu" or "cuda".
        save_every: Seconds between saves within an epoch.
    """

    method: Method = field(default_factory=PureVQ)
    data: str = "signs"
    epochs: int = 30
    batch_size: int = 64
    lr: float = 4e-4
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: float = 60.0

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        if self.epochs < 1 or self.batch_size < 2:
            raise InputError(f"expected at least 1 epoch and batches of 2, got {self.epochs} and {self.batch_size}")
        if not 0 < self.lr < math.inf or not 0 <= self.save_every < math.inf:
            raise InputError(f"expected lr > 0 and save_every >= 0, got {self.lr} and {self.save_every}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"expected device auto, cpu or cuda, got {self.device!r}")


def plain(config: PurifierConfig) -> dict[str, Any]:
    """Return the choices as JSON has them."""
    body = asdict(config)
    return json.loads(json.dumps({**body, "method": {"kind": config.method.kind, **body["method"]}}))


def restored(body: dict[str, Any]) -> PurifierConfig:
    """Return the choices that `plain` wrote.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is there that no choice is called.
    """
    method = dict(body["method"])
    kind = method.pop("kind")
    made = {m.kind: m for m in METHODS}[kind]
    nested = {}
    if made is SRL:
        nested = {"network": _choices(DiffusersVAE if "class_name" in method["network"] else VAE, method["network"])}
    if made is Shield:
        nested = {"network": _choices(OpenClip if "settings" in method["network"] else Towers, method["network"])}
    return PurifierConfig(**{**body, "method": _choices(made, {**method, **nested})})


def _choices(made: type, body: dict[str, Any]) -> Any:
    """Return a frozen object of choices; JSON has lists where it has tuples."""
    lists = {f.name: tuple(body[f.name]) for f in fields(made) if isinstance(body.get(f.name), list)}
    return made(**{**body, **lists})
