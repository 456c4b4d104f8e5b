"""Tiny data, tiny purifiers, and run folders of them; one thread, so that the bits are the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeq.data import Dataset, Split
from edgeq.purifiers import (
    ALP,
    VAE,
    Method,
    PureVQ,
    PurifierConfig,
    Shield,
    Towers,
    shield_from,
    towers_of,
    train_purifier,
)

SIDE = 16
TINY_VQ = PureVQ(channels=8, blocks=1, codes=16, code_dim=4, discriminator=4, adversarial_from=0.5)
TINY_FSQ = PureVQ(channels=8, blocks=1, bottleneck="fsq", levels=(3, 4), adversarial=0.0)
TINY_ALP = ALP(channels=8, blocks=1, latent=8)
TINY_VAE = VAE(channels=8, blocks=1, latent=4)
TINY_TOWERS = Towers(("a", "b"), width=16, depth=1, text_depth=1, dim=8, context=64)
METHODS = {"vq": TINY_VQ, "fsq": TINY_FSQ, "alp": TINY_ALP, "vae": TINY_VAE}


def images(count: int = 6, *, seed: int = 0, side: int = SIDE) -> Tensor:
    """Smooth byte images: noise of a quarter of the size, enlarged."""
    small = torch.rand(count, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(small, scale_factor=4, mode="bilinear") * 255).to(torch.uint8)


def labels(count: int = 6) -> Tensor:
    return torch.arange(count) % 2


def dataset(train: int = 48, test: int = 20) -> Dataset:
    return Dataset(
        "tiny", ("a", "b"), Split(images(train), labels(train)), Split(images(test, seed=1), labels(test)), flip=False
    )


def config(method: Method, **changes: object) -> PurifierConfig:
    return PurifierConfig(**{"method": method, "epochs": 2, "batch_size": 16, "device": "cpu", **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session", params=["vq", "fsq", "alp", "vae"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of each tiny purifier."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    train_purifier(config(METHODS[request.param]), out=out, dataset=dataset())
    return out


@pytest.fixture(scope="session")
def vq_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vq") / "run"
    train_purifier(config(TINY_VQ), out=out, dataset=dataset())
    return out


@pytest.fixture(scope="session")
def alp_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alp") / "run"
    train_purifier(config(TINY_ALP), out=out, dataset=dataset())
    return out


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae") / "run"
    train_purifier(config(TINY_VAE), out=out, dataset=dataset())
    return out


@pytest.fixture(scope="session")
def towers_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("towers") / "run"
    train_purifier(config(TINY_TOWERS, lr=3e-3), out=out, dataset=dataset())
    return out


def tiny_shield(start: Path, **changes: object) -> Shield:
    choices = {"channels": 8, "codes": 16, "code_dim": 4, "prompt_length": 4, "steps": 1, **changes}
    return shield_from(start, ("a", "b"), network=towers_of(start), **choices)


@pytest.fixture(scope="session")
def shield_run(towers_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shield") / "run"
    train_purifier(config(tiny_shield(towers_run), lr=3e-3), out=out, dataset=dataset())
    return out
