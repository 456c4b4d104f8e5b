"""The smallest training that has everything: three widths, a deployed stage, a last batch that is short."""

from pathlib import Path

import pytest

from edgeq.data import Dataset, load
from edgeq.quant.network import QuantConfig
from edgeq.training import TrainConfig, train


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    return TrainConfig(
        data="signs:train=160,test=64",
        model="resnet8",
        epochs=2,
        batch_size=24,
        quant=QuantConfig(bits=(32, 8, 4)),
        deployed=0.5,
        device="cpu",
        save_every=1e9,  # saving costs an fsync; the tests that need it ask for it
    )


@pytest.fixture(scope="session")
def data(tiny: TrainConfig) -> Dataset:
    return load(tiny.data)


@pytest.fixture(scope="session")
def spelled() -> str:
    """What the repr of a TrainConfig needs in a script."""
    return (
        "from edgeq.curriculum import Curriculum\nfrom edgeq.defenses import DWQ, Patches, Standard, TriQDef, Turns\n"
        "from edgeq.perceptual import Alignment\nfrom edgeq.quant.network import QuantConfig\n"
        "from edgeq.training import TrainConfig\n"
    )


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: TrainConfig, data: Dataset) -> Path:
    """The run folder of the tiny training; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(tiny, out=out, dataset=data)
    return out
