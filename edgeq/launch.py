"""Before the loop: the folder, the data and the processes; and how a user stops it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from edgeq import runs
from edgeq.config import TrainConfig, plain
from edgeq.data import Dataset, Split
from edgeq.errors import InputError

SMALLEST = 4  # images: two to calibrate with, two for a batch


def stop_on_signals() -> Callable[[], bool]:
    """Return a `stop` function that turns true at the first Ctrl-C or SIGTERM; for the command line."""
    caught: list[int] = []

    def handler(number: int, _frame: object) -> None:
        caught.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return lambda: bool(caught)


def fabric(config: TrainConfig) -> Fabric:
    """Return the started Fabric: one process, or those of torchrun."""
    accelerator = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a CUDA device, got none that torch can see; use --device cpu")
    precision: Any = "bf16-mixed" if config.precision == "bf16" else "32-true"
    if dist.is_torchelastic_launched():
        local, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        strategy = DDPStrategy(find_unused_parameters=True, process_group_backend=None)
        made = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy=strategy, precision=precision)
    else:
        made = Fabric(accelerator=accelerator, devices=1, precision=precision)
    made.launch()
    return made


def check_folder(out: Path, config: TrainConfig, resume: bool) -> None:
    """Refuse a folder that training would spoil, or that another training began."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / runs.CONFIG).exists():
        raise InputError(
            f"expected a new or empty folder, or a run, got {out}, which holds something else; choose another"
        )
    if not resume:
        raise InputError(
            f"expected a new or empty folder, got {out}, which holds a run; resume it or choose another --out"
        )
    check_choices(out, config)
    if (out / runs.WEIGHTS).exists():
        raise InputError(f"expected an unfinished run to resume, got {out}, which has finished; evaluate or export it")


def check_choices(out: Path, config: TrainConfig) -> None:
    """Refuse a run that was begun with other choices than these."""
    now = plain(config)
    # a run of an earlier edgeq does not name newer choices; it was trained as their defaults say
    before = _filled(plain(TrainConfig()), runs.read_info(out).training)
    changed = sorted(k for k in now if before.get(k) != now[k] and k not in ("save_every", "device"))
    if changed:
        name = changed[0]
        raise InputError(
            f"expected the choices of the run in {out} to resume it, got {name}={now[name]!r}, not {before.get(name)!r}"
        )


def _filled(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _filled(defaults[key], value) if isinstance(value, dict) and isinstance(defaults.get(key), dict) else value
        for key, value in {**defaults, **given}.items()
    }


def check_dataset(dataset: Dataset) -> None:
    """Refuse data that is too small to train on."""
    if len(dataset.classes) < 2 or len(dataset.train) < SMALLEST:
        raise InputError(
            f"expected at least 2 classes and {SMALLEST} training images, got {len(dataset.classes)} and "
            f"{len(dataset.train)}; add images"
        )


def image_shape(dataset: Dataset) -> tuple[int, int, int]:
    """Return channels, height and width."""
    if isinstance(dataset.train, Split):
        _, c, h, w = dataset.train.images.shape
        return c, h, w
    return 3, dataset.train.image_size, dataset.train.image_size


def batch_size(config: TrainConfig, images: int, processes: int) -> int:
    """Return the batch size over all processes: the one that was asked for, or what the images allow."""
    return config.batch_size if config.batch_size <= images else images - images % processes
