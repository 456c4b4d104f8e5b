"""The run folder of a purifier: the same files as a classifier's, see `edgeq.runs`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq import runs
from edgeq.errors import InputError
from edgeq.files import load_tensors, read_json, save_tensors, sha256, write_json
from edgeq.purifiers.base import AbstractGuard, AbstractPurifier
from edgeq.purifiers.config import PurifierConfig, plain, restored
from edgeq.purifiers.diffusers_vae import DiffusersVAE, find_diffusers
from edgeq.purifiers.shield import Shield
from edgeq.purifiers.srl import SRL
from edgeq.purifiers.towers import Towers
from edgeq.purifiers.vae import VAE

FORMAT = 1
SAMPLES = "samples.safetensors"  # below results/: some test images, and what the purifier makes of them


@dataclass(frozen=True)
class PurifierInfo:
    """What the folder says about itself.

    Attributes:
        config: All choices of the training.
        image_shape: (channels, height, width) of the images it was trained on.
    """

    config: PurifierConfig
    image_shape: tuple[int, int, int]


def write_info(folder: Path, info: PurifierInfo) -> None:
    """Write config.json."""
    body = {
        "format": FORMAT,
        "purifier": plain(info.config),
        "image_shape": list(info.image_shape),
        "versions": runs.versions(),
        "hardware": runs.hardware(),
    }
    write_json(folder / runs.CONFIG, body)


def read_info(folder: str | os.PathLike[str]) -> PurifierInfo:
    """Read config.json, or say what is wrong with the folder."""
    folder = Path(folder)
    if not folder.is_dir():
        came = "a file" if folder.exists() else "nothing"
        raise InputError(f"expected a purifier's run folder {folder}, got {came}; train one with edgeq purify train")
    body = read_json(folder / runs.CONFIG)
    if not isinstance(body, dict) or "purifier" not in body:
        raise InputError(f"expected a purifier's run in {folder}, got another run; name one of edgeq purify train")
    try:
        if body["format"] != FORMAT:
            raise InputError(f"expected format {FORMAT} in {folder}, got {body['format']}; use the edgeq that made it")
        channels, height, width = body["image_shape"]
        return PurifierInfo(restored(body["purifier"]), (int(channels), int(height), int(width)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"expected a purifier's config.json in {folder}, got one without or with a wrong {error}; train it again"
        ) from error


def save_weights(folder: Path, purifier: AbstractGuard) -> None:
    """Write weights.safetensors."""
    save_tensors(folder / runs.WEIGHTS, purifier.state_dict())


def load_purifier(folder: str | os.PathLike[str], *, device: str = "cpu") -> tuple[PurifierInfo, AbstractPurifier]:
    """Return a purifier's description and the trained purifier, in evaluation mode."""
    kind = read_info(folder).config.method.kind
    if kind in (Towers.kind, Shield.kind):
        raise InputError(
            f"expected a purifier of images in {folder}, got a run of kind {kind}: it works on features inside its own "
            "model, makes no images, and stands before no classifier; edgeq purify evaluate measures it with its model"
        )
    info, purifier = load_guard(folder, device=device)
    assert isinstance(purifier, AbstractPurifier)
    return info, purifier


def load_guard(folder: str | os.PathLike[str], *, device: str = "cpu") -> tuple[PurifierInfo, AbstractGuard]:
    """Return the description of a purifier, towers or a shield, and what was trained, in evaluation mode."""
    folder = Path(folder)
    info = read_info(folder)
    path = folder / runs.WEIGHTS
    if not path.exists():
        hint = "resume it with edgeq purify train --resume" if (folder / runs.STATE).exists() else "train it first"
        raise InputError(f"expected {runs.WEIGHTS} in {folder}, got none: the run has not finished; {hint}")
    purifier = info.config.method.build(info.image_shape, info.config.batch_size)
    tensors, wanted = load_tensors(path), purifier.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys()) or sorted(
        n for n, t in wanted.items() if tensors[n].shape != t.shape
    )
    if wrong:
        raise InputError(
            f"expected the tensors of this purifier in {path}, got a different set or shape at {wrong[0]!r} "
            f"({len(wrong)} in all); config.json and weights do not belong together"
        )
    purifier.load_state_dict(tensors)
    return info, purifier.requires_grad_(False).to(device).eval()


def srl_from(start: str | os.PathLike[str], **choices: Any) -> SRL:
    """Return the smoothing of a finished autoencoder.

    Args:
        start: Run folder of kind vae; or a folder of diffusers' AutoencoderKL or AutoencoderTiny.
        choices: Fields of `SRL` but its first three.
    """
    network = find_diffusers(start)
    if network is None:
        network = load_purifier(start)[0].config.method
    if not isinstance(network, VAE | DiffusersVAE):
        raise InputError(f"expected a run of kind vae in {start}, got one of {network.kind}; train one with --kind vae")
    return SRL(str(start), sha256(Path(start) / network.weights), network, **choices)


def towers_of(start: str | os.PathLike[str]) -> Towers:
    """Return the choices of finished towers."""
    method = load_guard(start)[0].config.method
    if not isinstance(method, Towers):
        raise InputError(
            f"expected a run of kind towers in {start}, got one of {method.kind}; train one with --kind towers"
        )
    return method


def check_folder(out: Path, config: PurifierConfig, *, resume: bool) -> None:
    """Refuse a folder that training would spoil, or that another training began."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / runs.CONFIG).exists():
        raise InputError(f"expected a new or empty folder, or a run, got {out}, which is neither; choose another")
    if not resume:
        raise InputError(f"expected a new or empty folder, got {out}, which holds a run; resume it or choose another")
    changed = _changed(out, config)
    if changed:
        name, before, now = changed
        raise InputError(f"expected the choices of the run in {out} to resume it, got {name}={now!r}, not {before!r}")
    if (out / runs.WEIGHTS).exists():
        raise InputError(f"expected an unfinished run to resume, got {out}, which has finished; apply or evaluate it")


def same_choices(folder: Path, config: PurifierConfig) -> bool:
    """Return whether a run was trained with these choices."""
    return _changed(folder, config) is None


def _changed(folder: Path, config: PurifierConfig) -> tuple[str, Any, Any] | None:
    now, before = plain(config), plain(read_info(folder).config)
    changed = sorted(k for k in now if before[k] != now[k] and k not in ("save_every", "device"))
    return (changed[0], before[changed[0]], now[changed[0]]) if changed else None
