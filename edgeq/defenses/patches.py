"""The patches that hardened training sees, the same for every defence that uses them.

    x_adv = x (1 - M) + P M        for a share rho of each batch

`online = 0`: P comes from an offline pool of universal patches towards every class (`edgeq.attacks.make_pool`), at a
random view. A pool needs a float network; the paper does not say whose. Ours is the run's own highest width after a
warm-up of clean training, or that of another run (`source`). Made once, it lies in RUN/patches and is found there by
`--resume`.

`online = 1`: P is made for each image on the network as it is now, at the place where it does most, on one of the
step's widths, drawn per batch (`edgeq.attacks.training_attack`). In between, the first so many of the patched images
get an online patch and the others one of the pool (the combined recipe).

Batches are shuffled, so the patched images are simply the first of each.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from edgeq.attacks import Goal, PatchPool, PoolConfig, make_pool, open_pool, surrogate, training_attack
from edgeq.attacks.pool import ORIGIN
from edgeq.data.seeds import generator
from edgeq.defenses.base import AbstractObjective, Key, Setting
from edgeq.defenses.turns import ALL, Turns
from edgeq.errors import InputError
from edgeq.quant.batchnorm import SHARED
from edgeq.quant.network import MultiBitNet
from edgeq.runs import RunInfo, load_run

FOLDER = "patches"
MOMENTUM = 0.1  # of running statistics, per step


@dataclass(frozen=True)
class Patches:
    """Which patches, how many, from when.

    Attributes:
        rho: Share of each batch that is also shown patched.
        lambda_adv: Weight of the patched images' loss.
        sizes: Sides in pixels; a batch has one of them.
        online: Share of the patched images whose patch is made for them in the step; the others get one of the pool.
        online_steps: Gradient steps of such a patch, after the one that gives its first place.
        online_scouts: Other starts that are asked about before, a forward pass each.
        warmup: Fraction of the epochs, at the beginning, that train without patches.
        copies: Patches of the pool for each class and size.
        pool_steps: Gradient steps of each.
        pool_images: Training images that the pool is made with.
        source: Run whose highest width the pool is made on; this run's own, after the warm-up, by default.
    """

    rho: float = 0.5
    lambda_adv: float = 1.0
    sizes: tuple[int, ...] = (6,)
    online: float = 0.0
    online_steps: int = 4
    online_scouts: int = 8
    warmup: float = 0.2
    copies: int = 1
    pool_steps: int = 200
    pool_images: int = 1000
    source: str = ""

    def __post_init__(self) -> None:
        """Check the ranges."""
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if not 0.0 < self.rho <= 1.0:
            raise InputError(f"expected rho above 0 and up to 1 (a share of the batch), got {self.rho}; 0.5 is usual")
        if not 0.0 <= self.online <= 1.0:
            raise InputError(f"expected online from 0 (pool) to 1 (made in the step), got {self.online}")
        if not 0.0 <= self.warmup < 1.0:
            raise InputError(f"expected warmup from 0 to below 1 (a fraction of the epochs), got {self.warmup}")
        if not 0.0 <= self.lambda_adv < float("inf"):
            raise InputError(f"expected lambda_adv of 0 or more, got {self.lambda_adv}; 1 is usual")
        if not self.sizes or min(self.sizes) < 1:
            raise InputError(f"expected patch sizes of 1 pixel or more, got {list(self.sizes)}; for example 6")
        if min(self.online_steps, self.copies, self.pool_steps, self.pool_images) < 1 or self.online_scouts < 0:
            raise InputError(
                "expected 1 or more online steps, pool copies, pool steps and pool images, and 0 or more online "
                f"scouts, got {self.online_steps}, {self.copies}, {self.pool_steps}, {self.pool_images} and "
                f"{self.online_scouts}"
            )

    @property
    def pooled(self) -> bool:
        """Whether any patch comes from a pool."""
        return self.online < 1.0

    def begin(self, epochs: int) -> int:
        """Return the first epoch with patches; a pool of the run's own needs an epoch before it."""
        begin = int(self.warmup * epochs + 1e-9)  # 1e-9: 0.7 of 10 epochs is the seventh, whatever the binary says
        return max(begin, 1) if self.pooled and not self.source else begin

    def check_epochs(self, epochs: int) -> None:
        """Refuse a training that would end before its first patch."""
        if self.begin(epochs) >= epochs:
            raise InputError(
                f"expected at least 2 epochs where the pool is made on the run itself, got {epochs}; train longer, or "
                "give another run's pool (--pool-from) or --online 1"
            )


class Patcher:
    """Shows images under patches; holds the pool.

    Args:
        net: The network in training.
        choices: Which patches.
    """

    def __init__(self, net: MultiBitNet, choices: Patches) -> None:
        side = min(net.image_shape[1:])
        if max(choices.sizes) > side:
            raise InputError(f"expected patch sizes up to the images' {side} pixels, got {max(choices.sizes)}")
        self.net, self.choices = net, choices
        self.active = False
        self.pool: PatchPool | None = None

    def check(self, info: RunInfo) -> None:
        """Refuse a source run of other classes or images."""
        if not self.choices.source or not self.choices.pooled:
            return
        other, _ = load_run(self.choices.source)
        if other.classes != info.classes or other.image_shape != info.image_shape:
            raise InputError(
                f"expected the pool's run to have this run's {len(info.classes)} classes and images of "
                f"{info.image_shape}, got {self.choices.source} with {len(other.classes)} and {other.image_shape}; "
                "name a run of the same data"
            )

    def prepare(self, setting: Setting) -> None:
        """Make or open the pool when the warm-up is over."""
        self.active = setting.epoch >= self.choices.begin(setting.epochs)
        if not self.active or not self.choices.pooled or self.pool is not None:
            return
        folder = setting.folder / FOLDER
        if setting.main and not _pools(folder):
            self._make(folder, setting)
        setting.wait()
        found = _pools(folder)
        if len(found) != 1:
            raise InputError(f"expected one pool in {folder}, got {len(found)}; start the run anew in another folder")
        self.pool = open_pool(found[0])

    def _make(self, folder: Path, setting: Setting) -> None:
        choices = self.choices
        net = self.net
        if choices.source:
            net = load_run(choices.source)[1].to(next(self.net.parameters()).device)
        config = PoolConfig(sizes=choices.sizes, copies=choices.copies)
        config = replace(config, ascent=replace(config.ascent, steps=choices.pool_steps))
        shown = setting.images(choices.pool_images)
        make_pool(
            surrogate(net, max(net.bits)),
            shown.images,
            shown.labels,
            folder=folder,
            config=config,
            progress=lambda *_: setting.interrupt(),
        )

    def on(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], active: tuple[int, ...], key: Key
    ) -> UInt8[Tensor, "k c h w"]:
        """Return the first rho n images, patched; none of them during the warm-up."""
        count = round(self.choices.rho * len(images)) if self.active else 0
        images, labels = images[:count], labels[:count]
        made = round(self.choices.online * count) if self.pool is not None else count
        parts = [images[:0]]
        if made:
            parts.append(self._online(images[:made], labels[:made], active, key))
        if made < count:
            assert self.pool is not None
            gen = generator("pool patches", *key)
            parts.append(self.pool.on(images[made:], labels[made:], gen=gen))
        return torch.cat(parts)

    def _online(self, images: Tensor, labels: Tensor, active: tuple[int, ...], key: Key) -> Tensor:
        gen = generator("online patches", *key)
        bits = active[int(torch.randint(len(active), (1,), generator=gen))]
        size = self.choices.sizes[int(torch.randint(len(self.choices.sizes), (1,), generator=gen))]
        attack = training_attack(size, steps=self.choices.online_steps, scouts=self.choices.online_scouts)
        return attack.run(surrogate(self.net, bits), images, Goal(labels), seed=key).on(images)


class AbstractPatchedObjective(AbstractObjective):
    """An objective that shows the network patches.

    Args:
        net: The network in training.
        patches: Which patches.
        turns: Which widths a step has; an online patch is made on one of them.
        label_smoothing: Of the cross-entropy.
        clip: Largest norm of a step's gradient; 0 for any.

    Where widths take turns, the running statistics that patches and input gradients are made with would lag behind
    weights that move at every step: each width's move faster, so that they forget as much per step as if in all.
    """

    def __init__(
        self,
        net: MultiBitNet,
        patches: Patches,
        turns: Turns = ALL,
        *,
        label_smoothing: float = 0.0,
        clip: float = 0.0,
    ) -> None:
        super().__init__(net, turns)
        self.patcher = Patcher(net, patches)
        self.label_smoothing = label_smoothing
        self.clip = clip

    def check(self, info: RunInfo) -> None:
        """Check the pool's source."""
        self.patcher.check(info)

    def prepare(self, setting: Setting) -> None:
        """Make or open the pool, where one is used, and let running statistics keep up."""
        self.patcher.prepare(setting)
        share = self.turns.share(setting.active)
        for name, norm in self.net.named_modules():
            if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) and not name.endswith(SHARED):
                norm.momentum = 1.0 - (1.0 - MOMENTUM) ** (1.0 / share)


def _pools(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"pool-*/{ORIGIN}"))
