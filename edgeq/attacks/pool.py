"""An offline pool of universal patches, made once on one victim (the float width) and kept in the run folder.

    FOLDER/pool-KEY/pool.safetensors    the patches
    FOLDER/pool-KEY/pool.json           what they were made from: choices, hashes of network and images, versions
    FOLDER/pool-KEY/partial.safetensors the patches so far, while it is being made; a killed run goes on from there

KEY is a hash of the choices, the network's tensors and widths, and the images. So a pool is found again exactly when it
would come out the same, and never mistaken for another's.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from edgeq.attacks.base import Ascent, Progress
from edgeq.attacks.eot import EOT, apply, draw_views
from edgeq.attacks.gap import ASCENT, GAP
from edgeq.attacks.goal import Goal
from edgeq.attacks.patch import as_float, like
from edgeq.attacks.victim import Surrogate
from edgeq.errors import InputError
from edgeq.files import load_tensors, read_json, save_tensors, sha256, write_json
from edgeq.runs import versions

PATCHES, ORIGIN, PARTIAL, FORMAT = "pool.safetensors", "pool.json", "partial.safetensors", 1


@dataclass(frozen=True)
class PoolConfig:
    """What the pool holds: a GAP patch for every size, target and copy.

    Attributes:
        sizes: Sides in pixels.
        targets: Target classes; none given is all classes.
        copies: Patches of each kind, from different seeds.
        ascent: Steps of each.
        eot: Views that they are made for and pasted with.
        batch_size: Images per step.
        seed: Decides everything random.
    """

    sizes: tuple[int, ...] = (6,)
    targets: tuple[int, ...] = ()
    copies: int = 1
    ascent: Ascent = field(default_factory=lambda: replace(ASCENT, steps=200))
    eot: EOT = field(default_factory=EOT)
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that there is something to make."""
        if not self.sizes or self.copies < 1:
            raise InputError(f"expected at least one size and copy, got {self.sizes} and {self.copies}; add some")


@dataclass(frozen=True)
class PatchPool:
    """Patches by side, and the target class of each.

    Attributes:
        patches: Side -> patches.
        targets: Side -> their target classes.
        eot: Views to paste them with.
    """

    patches: dict[int, Tensor]
    targets: dict[int, Tensor]
    eot: EOT

    def on(
        self, images: Shaped[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, gen: torch.Generator
    ) -> Shaped[Tensor, "n c h w"]:
        """Return the images, each with a random patch of one random size at a random view, in their own type.

        A patch towards an image's own class attacks nothing, so images get patches of other targets where there are.
        """
        sizes = sorted(self.patches)
        size = sizes[int(torch.randint(len(sizes), (1,), generator=gen))]
        useful = (self.targets[size][None] != labels.cpu()[:, None]).double()
        useful[useful.sum(1) == 0] = 1.0
        chosen = torch.multinomial(useful, 1, generator=gen)[:, 0]
        views = draw_views(self.eot, len(images), size=size, image_size=(images.shape[2], images.shape[3]), gen=gen)
        patch = self.patches[size][chosen].to(images.device)
        return like(images, apply(as_float(images), patch, views))


def make_pool(
    victim: Surrogate,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    folder: Path,
    config: PoolConfig = PoolConfig(),
    progress: Progress | None = None,
) -> PatchPool:
    """Return the pool of these choices from `folder`, or make it there, or go on making it.

    Args:
        victim: What the patches are made on: `surrogate(net, 32)`.
        images: Training images to make them with.
        labels: Their classes.
        folder: Usually the run folder.
        config: Sizes, targets, steps.
        progress: Called with patches done, patches in all, and the last one's mean loss.
    """
    targets = config.targets or tuple(labels.unique().tolist())
    origin = _origin(victim, images, labels, config, targets)
    place = folder / _name(origin)
    if (place / ORIGIN).exists():
        return open_pool(place)
    wanted = [(s, t, c) for s in config.sizes for t in targets for c in range(config.copies)]
    made = load_tensors(place / PARTIAL) if (place / PARTIAL).exists() else {}
    losses: dict[str, float] = {}
    for done, (size, target, copy) in enumerate(wanted):
        name = f"{size}-{target}-{copy}"
        if name in made:
            continue
        attack = GAP(size=size, ascent=config.ascent, eot=config.eot, batch_size=config.batch_size)
        result = attack.run(victim, images, Goal.towards(labels, target), seed=(config.seed, size, target, copy))
        made[name], losses[name] = result.patch[0].cpu(), float(result.score[0])
        save_tensors(place / PARTIAL, made)
        if progress is not None:
            progress(done + 1, len(wanted), losses[name])
    save_tensors(place / PATCHES, made)
    write_json(place / ORIGIN, {**origin, "versions": versions(), "sha256": sha256(place / PATCHES)})
    with contextlib.suppress(OSError):
        (place / PARTIAL).unlink()
    return open_pool(place)


def open_pool(place: Path) -> PatchPool:
    """Read a pool, or say what is wrong with it.

    Raises:
        InputError: A file is missing, damaged, or not the one that was written.
    """
    origin = read_json(place / ORIGIN)
    try:
        if origin["format"] != FORMAT:
            raise InputError(f"expected pool format {FORMAT} in {place}, got {origin['format']}; make the pool again")
        wanted, written, eot = origin["sha256"], origin["config"], _eot(origin["config"]["eot"])
        names = {
            f"{s}-{t}-{c}" for s in written["sizes"] for t in origin["targets"] for c in range(int(written["copies"]))
        }
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"expected a pool's description in {place}, got a wrong {error}; delete the folder") from error
    described = {name: value for name, value in origin.items() if name not in ("versions", "sha256")}
    if place.name != _name(described):
        raise InputError(
            f"expected {place / ORIGIN} to describe {place.name}, got what belongs to {_name(described)}; it was "
            "changed: delete the folder and make the pool again"
        )
    found = sha256(place / PATCHES)
    if found != wanted:
        raise InputError(
            f"expected {place / PATCHES} with SHA-256 {wanted}, got {found}; it was changed: delete {place} and make "
            "the pool again"
        )
    tensors = load_tensors(place / PATCHES)
    if set(tensors) != names:
        raise InputError(f"expected {len(names)} patches in {place}, got {len(tensors)} or others; delete the folder")
    by_size: dict[int, list[tuple[int, Tensor]]] = {}
    for name, patch in tensors.items():
        size, target, _ = map(int, name.split("-"))
        by_size.setdefault(size, []).append((target, patch))
    patches = {size: torch.stack([p for _, p in found]) for size, found in by_size.items()}
    return PatchPool(patches, {size: torch.tensor([t for t, _ in found]) for size, found in by_size.items()}, eot)


def _origin(
    victim: Surrogate, images: Tensor, labels: Tensor, config: PoolConfig, targets: tuple[int, ...]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "config": json.loads(json.dumps(asdict(config))),
        "targets": list(targets),
        "bits": list(victim.bits),
        "network": _hash(victim.net.state_dict()),
        "images": _hash({"images": images, "labels": labels}),
    }


def _name(origin: dict[str, Any]) -> str:
    return "pool-" + hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _eot(fields: dict[str, Any]) -> EOT:
    region = fields["region"]
    low, high = fields["scale"]
    place: Any = tuple(region) if isinstance(region, list) else region  # JSON has no tuples; Any: EOT checks it in use
    return EOT(fields["rotation"], (low, high), fields["brightness"], place)
