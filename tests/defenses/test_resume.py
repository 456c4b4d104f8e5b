"""Hardened trainings end with the same bits when they were stopped on the way."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeq import runs
from edgeq.curriculum import Curriculum
from edgeq.defenses import DWQ, Patches, Turns
from edgeq.errors import InputError
from edgeq.files import load_tensors, read_json, write_json
from edgeq.quant.network import QuantConfig
from edgeq.training import Interrupted, TrainConfig, train
from tests.stopping import on_call

from .conftest import Tiny, small_data

CONFIG = TrainConfig(
    data="noise",
    model="tiny",
    defense="triqdef",
    epochs=3,
    batch_size=12,
    quant=QuantConfig(bits=(32, 4)),
    deployed=0.34,
    curriculum=Curriculum(enabled=False),
    patches=Patches(online=0.5, sizes=(3,), online_steps=1, pool_steps=2, pool_images=12),
    dwq=DWQ(steps=1),
    device="cpu",
    save_every=0.0,
    ema=0.9,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "build", lambda _name, *, classes: Tiny(classes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "build", lambda _name, *, classes: Tiny(classes))
        train(CONFIG, out=out, dataset=small_data())
    return out


@pytest.mark.parametrize(
    "stop_at", [pytest.param(2, marks=pytest.mark.ci_slow), 5, pytest.param(7, marks=pytest.mark.ci_slow)]
)
def test_triqdef_with_a_pool_resumes_to_the_bit(tmp_path: Path, whole: Path, stop_at: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(CONFIG, out=out, dataset=small_data(), stop=on_call(stop_at))
    train(CONFIG, out=out, dataset=small_data(), resume=True)
    expected, found = (load_tensors(folder / runs.WEIGHTS) for folder in (whole, out))
    assert all(torch.equal(t, expected[name]) for name, t in found.items())
    assert (out / runs.METRICS).read_text() == (whole / runs.METRICS).read_text()
    pools = [sorted(path.name for path in (folder / "patches").iterdir()) for folder in (whole, out)]
    assert pools[0] == pools[1] and len(pools[0]) == 1


@pytest.mark.parametrize("defense", ["patch-at", "dwq", "pbat"])
def test_the_other_defences_train(tmp_path: Path, defense: str) -> None:
    bits = (4,) if defense == "pbat" else (32, 4)
    config = replace(CONFIG, defense=defense, quant=QuantConfig(bits=bits))
    train(config, out=tmp_path / "run", dataset=small_data())
    assert runs.read_info(tmp_path / "run").training["defense"] == defense


def test_a_run_of_an_earlier_version_resumes_if_the_newer_choices_are_the_defaults(tmp_path: Path) -> None:
    config = replace(CONFIG, defense="standard", patches=Patches(), dwq=DWQ())
    with pytest.raises(Interrupted):
        train(config, out=tmp_path, dataset=small_data(), stop=lambda: True)
    body = read_json(tmp_path / runs.CONFIG)
    for name in ("patches", "triqdef", "dwq"):
        del body["training"][name]
    write_json(tmp_path / runs.CONFIG, body)
    with pytest.raises(InputError, match="patches"):
        train(replace(config, patches=Patches(rho=0.25)), out=tmp_path, dataset=small_data(), resume=True)
    train(config, out=tmp_path, dataset=small_data(), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defense": "magic"}, "'magic'"),
        ({"epochs": 1}, "at least 2 epochs"),
        ({"defense": "pbat"}, "one width"),
        ({"defense": "dwq", "standard": replace(CONFIG.standard, distill=0.5)}, "no distill"),
        ({"defense": "dwq", "turns": Turns(3)}, "no widths per step"),
        ({"defense": "triqdef", "turns": Turns(1)}, "which compares them"),
        ({"defense": "standard", "standard": replace(CONFIG.standard, distill=0.5)}, "teacher"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)


def test_nothing_is_written_for_a_patch_that_does_not_fit(tmp_path: Path) -> None:
    config = replace(CONFIG, patches=replace(CONFIG.patches, sizes=(40,)))
    with pytest.raises(InputError, match="12 pixels, got 40"):
        train(config, out=tmp_path / "run", dataset=small_data())
    assert not (tmp_path / "run").exists()
