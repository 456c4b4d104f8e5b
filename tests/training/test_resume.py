"""A run folder: what it holds, and that a run stopped, killed or out of space goes on to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeq import runs
from edgeq.data import Dataset
from edgeq.errors import InputError
from edgeq.evaluate import accuracies
from edgeq.files import load_tensors, save_tensors
from edgeq.quant.network import MultiBitNet
from edgeq.training import Diverged, Interrupted, Progress, TrainConfig, train
from tests.stopping import on_call


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / runs.WEIGHTS)


def test_a_run_folder_holds_what_the_contract_says(whole: Path, data: Dataset, tiny: TrainConfig) -> None:
    info, net = runs.load_run(whole)
    assert info.classes == data.classes
    assert info.quant == tiny.quant
    lines = [json.loads(line) for line in (whole / runs.METRICS).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert set(lines[-1]["accuracy"]) == {"32", "8", "4"}
    assert not (whole / runs.STATE).exists()
    assert [a.bits for a in accuracies(net, data.test)] == [32, 8, 4]


@pytest.mark.parametrize(
    "stop_at", [pytest.param(2, marks=pytest.mark.ci_slow), 8, pytest.param(17, marks=pytest.mark.ci_slow)]
)
def test_a_stopped_run_resumes_to_the_bit(
    tmp_path: Path, whole: Path, data: Dataset, stop_at: int, tiny: TrainConfig
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(tiny, out=out, dataset=data, stop=on_call(stop_at))
    assert not (out / runs.WEIGHTS).exists()
    train(tiny, out=out, dataset=data, resume=True)
    expected = _weights(whole)
    assert all(torch.equal(t, expected[name]) for name, t in _weights(out).items())
    assert (out / runs.METRICS).read_text() == (whole / runs.METRICS).read_text()


@pytest.mark.ci_slow
def test_a_killed_run_resumes_to_the_bit(tmp_path: Path, whole: Path, spelled: str, tiny: TrainConfig) -> None:
    out = tmp_path / "run"
    script = (
        "import sys, pathlib\n"
        "from choices import CONFIG\n"
        "from edgeq.training import train\n"
        "if __name__ == '__main__':\n"
        "    train(CONFIG, out=sys.argv[1], resume=pathlib.Path(sys.argv[1]).exists())\n"
    )
    (tmp_path / "choices.py").write_text(f"{spelled}CONFIG = {replace(tiny, save_every=0.0)!r}\n")
    (tmp_path / "go.py").write_text(script)
    command = [sys.executable, str(tmp_path / "go.py"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    state = out / runs.STATE / "state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not (out / runs.WEIGHTS).exists()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    expected = _weights(whole)
    assert all(torch.equal(t, expected[name]) for name, t in _weights(out).items())


def test_a_full_disk_loses_nothing_already_saved(tmp_path: Path, data: Dataset, tiny: TrainConfig) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(tiny, out=out, dataset=data, stop=on_call(5))
    before = (out / runs.STATE / "state.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch:

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="space"):
            train(tiny, out=out, dataset=data, resume=True)
    assert (out / runs.STATE / "state.safetensors").read_bytes() == before


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> list[MultiBitNet]:
    """The networks that a training makes, to be spoilt while it runs."""
    made: list[MultiBitNet] = []
    original = runs.new_network

    def remember(info: runs.RunInfo) -> MultiBitNet:
        made.append(original(info))
        return made[-1]

    monkeypatch.setattr(runs, "new_network", remember)
    return made


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    tmp_path: Path, data: Dataset, live: list[MultiBitNet], tiny: TrainConfig
) -> None:
    out = tmp_path / "run"

    def poison(p: Progress) -> None:
        if (p.epoch, p.batch) == (0, 4):
            with torch.no_grad():
                live[-1].weighted()["fc"].weight.fill_(float("nan"))

    with pytest.raises(Diverged, match="expected a finite loss"):
        train(tiny, out=out, dataset=data, progress=poison)
    assert not (out / runs.WEIGHTS).exists()


def test_a_state_with_nan_never_replaces_a_good_one(
    tmp_path: Path, data: Dataset, live: list[MultiBitNet], tiny: TrainConfig
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(tiny, out=out, dataset=data, stop=lambda: True)
    before = (out / runs.STATE / "state.safetensors").read_bytes()

    def poison(p: Progress) -> None:
        if p.batch == p.batches:  # after the epoch's last step, so that no loss shows it
            with torch.no_grad():
                live[-1].weighted()["fc"].weight.fill_(float("nan"))

    with pytest.raises(Diverged, match=r"units\.fc\.weight"):
        train(tiny, out=out, dataset=data, resume=True, progress=poison)
    assert (out / runs.STATE / "state.safetensors").read_bytes() == before


def test_folders_that_are_not_ours_are_refused(tmp_path: Path, whole: Path, data: Dataset, tiny: TrainConfig) -> None:
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        train(tiny, out=tmp_path, dataset=data)
    with pytest.raises(InputError, match="holds a run"):
        train(tiny, out=whole, dataset=data)
    with pytest.raises(InputError, match="has finished"):
        train(tiny, out=whole, dataset=data, resume=True)
    with pytest.raises(InputError, match="choices of the run"):
        train(replace(tiny, lr=0.01), out=whole, dataset=data, resume=True)


def test_a_state_of_another_network_is_refused(tmp_path: Path, data: Dataset, tiny: TrainConfig) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(tiny, out=out, dataset=data, stop=lambda: True)
    save_tensors(out / runs.STATE / "state.safetensors", {"net.x": torch.zeros(1)})
    with pytest.raises(InputError, match="does not fit"):
        train(tiny, out=out, dataset=data, resume=True)
