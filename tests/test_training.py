"""Training: it learns, stops cleanly, resumes to the bit, and refuses what it cannot do."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeq import calib, launch, runs
from edgeq.average import Average
from edgeq.curriculum import Curriculum
from edgeq.data import Dataset, Split, decoded, load
from edgeq.defenses import DEFENSES, Standard, StandardObjective, Turns
from edgeq.errors import InputError
from edgeq.evaluate import accuracies
from edgeq.files import load_tensors, save_tensors
from edgeq.models import build
from edgeq.optimizer import learning_rate, make_optimizer, update
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.network import QuantConfig
from edgeq.training import Diverged, Interrupted, Progress, TrainConfig, train

TINY = TrainConfig(
    data="signs:train=160,test=64",
    model="resnet8",
    epochs=2,
    batch_size=24,
    quant=QuantConfig(bits=(32, 8, 4)),
    deployed=0.5,
    device="cpu",
    save_every=1e9,  # saving costs an fsync; the tests that need it ask for it
)

NAMES = (  # what the repr of a TrainConfig is written with
    "from edgeq.curriculum import Curriculum\nfrom edgeq.defenses import DWQ, Patches, Standard, TriQDef, Turns\n"
    "from edgeq.perceptual import Alignment\nfrom edgeq.quant.network import QuantConfig\n"
    "from edgeq.training import TrainConfig\n"
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load(TINY.data)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / runs.WEIGHTS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(TINY, out=out, dataset=data)
    return out


def test_a_run_folder_holds_what_the_contract_says(whole: Path, data: Dataset) -> None:
    info, net = runs.load_run(whole)
    assert info.classes == data.classes
    assert info.quant == TINY.quant
    lines = [json.loads(line) for line in (whole / runs.METRICS).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert set(lines[-1]["accuracy"]) == {"32", "8", "4"}
    assert not (whole / runs.STATE).exists()
    assert [a.bits for a in accuracies(net, data.test)] == [32, 8, 4]


@pytest.mark.parametrize(
    "stop_at", [pytest.param(2, marks=pytest.mark.ci_slow), 8, pytest.param(17, marks=pytest.mark.ci_slow)]
)
def test_a_stopped_run_resumes_to_the_bit(tmp_path: Path, whole: Path, data: Dataset, stop_at: int) -> None:
    out = tmp_path / "run"
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls == stop_at

    with pytest.raises(Interrupted):
        train(TINY, out=out, dataset=data, stop=stop)
    assert not (out / runs.WEIGHTS).exists()
    train(TINY, out=out, dataset=data, resume=True)
    expected = _weights(whole)
    assert all(torch.equal(t, expected[name]) for name, t in _weights(out).items())
    assert (out / runs.METRICS).read_text() == (whole / runs.METRICS).read_text()


@pytest.mark.ci_slow
def test_a_killed_run_resumes_to_the_bit(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    script = (
        "import sys, pathlib, torch\n"
        "from tests_config import TINY\n"
        "from edgeq.training import train\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "if __name__ == '__main__':\n"
        "    train(TINY, out=sys.argv[1], resume=pathlib.Path(sys.argv[1]).exists())\n"
    )
    (tmp_path / "tests_config.py").write_text(f"{NAMES}TINY = {replace(TINY, save_every=0.0)!r}\n")
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


@pytest.mark.ci_slow
def test_processes_stop_and_save_together(tmp_path: Path) -> None:
    """One process alone gets the signal, and one alone thinks that it is time to save."""
    (tmp_path / "go.py").write_text(
        "import dataclasses, os, sys, torch\n"
        f"from edgeq.training import Interrupted, train\n{NAMES}"
        "torch.set_num_threads(1)\n"
        "rank, calls = int(os.environ['RANK']), []\n"
        f"config = {TINY!r}\n"
        "config = dataclasses.replace(config, save_every=0.0 if rank else 1e9)\n"
        "def stop():\n    calls.append(1)\n    return rank == 1 and len(calls) == 3\n"
        "try:\n    train(config, out=sys.argv[1], stop=stop)\n"
        "except Interrupted:\n    open(sys.argv[1] + f'/stopped{rank}', 'w').write(str(len(calls)))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29534"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(tmp_path / "go.py"), str(tmp_path / "run")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert [(tmp_path / "run" / f"stopped{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    assert load_tensors(tmp_path / "run" / runs.STATE / "state.safetensors")["position"].tolist() == [0, 3]


@pytest.mark.ci_slow
@pytest.mark.parametrize("widths", [0, 1], ids=["together", "in-turn"])
def test_two_processes_give_the_losses_of_one(tmp_path: Path, widths: int) -> None:
    config = replace(
        TINY,
        epochs=1,
        deployed=0.0,
        quant=QuantConfig(bits=(32, 4)),
        curriculum=Curriculum(enabled=False),
        turns=Turns(widths),
    )
    (tmp_path / "go.py").write_text(
        "import json, sys, os, torch\n"
        f"from edgeq.training import train\n{NAMES}"
        "torch.set_num_threads(1)\n"
        "seen = []\n"
        f"config = {config!r}\n"
        "keep = lambda p: p.accuracy or seen.append([p.losses.get(name) for name in ('ce_32', 'ce_4')])\n"
        "train(config, out=sys.argv[1], progress=keep)\n"
        "rank = os.environ.get('RANK', 'one')\n"
        "open(sys.argv[1] + f'/losses{rank}.json', 'w').write(json.dumps(seen))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run
    run([sys.executable, str(tmp_path / "go.py"), str(tmp_path / "one")], env=environment, check=True, timeout=300)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29533"]
    run([*launcher, str(tmp_path / "go.py"), str(tmp_path / "two")], env=environment, check=True, timeout=300)
    one = json.loads((tmp_path / "one" / "lossesone.json").read_text())
    both = [json.loads((tmp_path / "two" / f"losses{rank}.json").read_text()) for rank in (0, 1)]
    assert both[0][0][0] is not None
    one, first, second = (torch.tensor(np.array(seen, np.float64)) for seen in (one, *both))  # a width not trained: nan
    two = (first + second) / 2
    # Same images, same statistics: in float only the order of summation differs, and training amplifies it slowly.
    torch.testing.assert_close(two[0, 0], one[0, 0], atol=1e-4, rtol=0)
    # At 4 bits a difference in the last place can move a value to the next code; in turns that reaches float too.
    torch.testing.assert_close(two[:, 0], one[:, 0], atol=0.05 if widths else 0.02, rtol=0, equal_nan=True)
    torch.testing.assert_close(two[:, 1], one[:, 1], atol=0.05, rtol=0, equal_nan=True)


@pytest.mark.ci_slow
def test_a_loss_that_one_process_cannot_use_stops_them_all(tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text(
        "import os, sys, torch\n"
        f"from edgeq.training import Diverged, train\n{NAMES}"
        "from edgeq.defenses import DEFENSES, StandardObjective\n"
        "class Broken(StandardObjective):\n"
        "    def forward(self, images, labels, active, key=(0, 0, 0, 0)):\n"
        "        found = super().forward(images, labels, active, key)\n"
        "        if os.environ['RANK'] == '0' and key[2] == 2:\n"
        "            found['loss'] = found['loss'] * float('inf')\n"
        "        return found\n"
        "DEFENSES['standard'] = lambda net, config: Broken(net, config.standard)\n"
        "torch.set_num_threads(1)\n"
        "try:\n"
        f"    train({TINY!r}, out=sys.argv[1])\n"
        "except Diverged as error:\n"
        "    open(sys.argv[1] + '/diverged' + os.environ['RANK'], 'w').write(str(error))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29534"]
    command = [*launcher, str(tmp_path / "go.py"), str(tmp_path / "run")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    words = [(tmp_path / f"run/diverged{rank}").read_text() for rank in (0, 1)]
    assert all("expected a finite loss" in text and "batch 2; start anew" in text for text in words)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path, data: Dataset) -> None:
    out = tmp_path / "run"

    def poison(p: Progress) -> None:
        if (p.epoch, p.batch) == (0, 4):
            with torch.no_grad():
                live[0].units["fc"].weight.fill_(float("nan"))  # type: ignore[union-attr, operator]

    live: list = []
    original = runs.new_network

    def remember(info: runs.RunInfo):
        live.append(original(info))
        return live[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "new_network", remember)
        with pytest.raises(Diverged, match="expected a finite loss"):
            train(TINY, out=out, dataset=data, progress=poison)
    assert not (out / runs.WEIGHTS).exists()


def test_a_state_with_nan_never_replaces_a_good_one(tmp_path: Path, data: Dataset) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(TINY, out=out, dataset=data, stop=lambda: True)
    before = (out / runs.STATE / "state.safetensors").read_bytes()
    live: list = []
    original = runs.new_network

    def remember(info: runs.RunInfo):
        live.append(original(info))
        return live[-1]

    def poison(p: Progress) -> None:
        if p.batch == p.batches:  # after the epoch's last step, so that no loss shows it
            with torch.no_grad():
                live[0].units["fc"].weight.fill_(float("nan"))  # type: ignore[union-attr, operator]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "new_network", remember)
        with pytest.raises(Diverged, match=r"units\.fc\.weight"):
            train(TINY, out=out, dataset=data, resume=True, progress=poison)
    assert (out / runs.STATE / "state.safetensors").read_bytes() == before


def test_dropout_is_a_function_of_the_seed_and_leaves_the_callers_random_state(tmp_path: Path, data: Dataset) -> None:
    config = replace(TINY, epochs=1, deployed=0.0, quant=QuantConfig(bits=(32,)), batch_size=60)

    def dropping(_name: str, *, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 5, 4),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, classes),
        )

    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "build", dropping)
        for name, seed in (("a", 0), ("b", 0)):
            train(replace(config, seed=seed), out=tmp_path / name, dataset=data)
            assert torch.equal(torch.get_rng_state(), state)
            torch.rand(3)
            state = torch.get_rng_state()
    assert all(torch.equal(t, _weights(tmp_path / "b")[name]) for name, t in _weights(tmp_path / "a").items())


def test_an_average_forgets_the_start_and_adopts_widths_that_enter() -> None:
    net = multibit(build("resnet8", classes=10), bits=(32, 8, 4))
    average = Average(net, 0.999)
    first = {name: t.clone() for name, t in average.tensors.items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    for updates in range(50):
        average.update(net, updates)
    name = "units.fc.weight"
    torch.testing.assert_close(average.tensors[name], first[name] + 1.0, atol=1e-3, rtol=0)  # 0.999^50 would leave 95 %
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    average.adopt(net, 4)
    now = net.state_dict()
    same = {name for name, t in average.tensors.items() if torch.equal(t, now[name]) and "num_batches" not in name}
    assert {name for name in same if "norms" in name or "steps" in name} >= {
        name for name, _ in net.named_parameters() if name.endswith(".4") or ".norms.4." in name
    }
    assert not any(".8" in name and "running" not in name for name in same)


@pytest.mark.parametrize("per_class", [1, 2])
def test_too_few_images_or_classes_are_refused_before_anything_is_written(tmp_path: Path, per_class: int) -> None:
    images, labels = torch.zeros(2 * per_class, 3, 16, 16, dtype=torch.uint8), torch.arange(2 * per_class) % 2
    split = Split(images, labels)
    tiny = Dataset("tiny", ("a", "b"), train=split, test=split, flip=False)
    if per_class == 1:
        with pytest.raises(InputError, match="4 training images, got 2 and 2"):
            train(TINY, out=tmp_path / "run", dataset=tiny)
        assert not (tmp_path / "run").exists()
    else:
        train(replace(TINY, epochs=1), out=tmp_path / "run", dataset=tiny)
    one = replace(tiny, classes=("a",), train=Split(images, labels * 0), test=Split(images, labels * 0))
    with pytest.raises(InputError, match="at least 2 classes"):
        train(TINY, out=tmp_path / "one", dataset=one)


def test_layers_may_be_called_norm_or_steps() -> None:
    model = nn.Sequential()
    layers = {"norm": nn.Conv2d(3, 4, 3), "steps": nn.Conv2d(4, 4, 3), "flat": nn.Flatten(), "fc": nn.Linear(64, 10)}
    for name, layer in layers.items():
        model.add_module(name, layer)
    net = multibit(model, image_shape=(3, 8, 8))
    decayed = {id(p) for p in make_optimizer(net, lr=0.1, weight_decay=1e-4).param_groups[0]["params"]}
    assert decayed == {id(unit.weight) for unit in net.weighted().values()}


def test_a_full_disk_loses_nothing_already_saved(tmp_path: Path, data: Dataset) -> None:
    out = tmp_path / "run"
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls == 5

    with pytest.raises(Interrupted):
        train(TINY, out=out, dataset=data, stop=stop)
    before = (out / runs.STATE / "state.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch:

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="space"):
            train(TINY, out=out, dataset=data, resume=True)
    assert (out / runs.STATE / "state.safetensors").read_bytes() == before


def _of(progress: Progress, name: str) -> list[float]:
    return [progress.losses[name]] if name in progress.losses and progress.batch else []


@pytest.mark.ci_slow
def test_it_learns(tmp_path: Path) -> None:
    data = load("signs:train=256,test=64")
    losses: list[float] = []
    config = replace(TINY, epochs=4, deployed=0.0, quant=QuantConfig(bits=(8, 2)), curriculum=Curriculum(enabled=False))
    train(config, out=tmp_path / "run", dataset=data, progress=lambda p: losses.extend(_of(p, "ce_2")))
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]


def test_the_objective_is_the_mean_over_the_active_widths() -> None:
    net = multibit(build("resnet8", classes=10), bits=(32, 8))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(8)
    objective = StandardObjective(net.train(), Standard())
    losses = objective(images, labels, (32, 8))
    torch.testing.assert_close(losses["loss"].detach(), (losses["ce_32"] + losses["ce_8"]) / 2)
    assert set(losses) == {"loss", "ce_32", "ce_8"}


@pytest.mark.parametrize(("passes", "rounds"), [(2, 2), (0, 3), (7, 3)])
def test_widths_that_take_turns_take_as_many_steps_each(
    tmp_path: Path, data: Dataset, passes: int, rounds: int
) -> None:
    config = replace(TINY, epochs=1, deployed=0.0, curriculum=Curriculum(enabled=False), batch_size=40)
    seen: list[str] = []

    def watch(progress: Progress) -> None:
        seen.extend(name for name in progress.losses if progress.batch and name != "loss")

    train(replace(config, turns=Turns(1, passes)), out=tmp_path / "run", dataset=data, progress=watch)
    assert seen == (["ce_32", "ce_8", "ce_4"] * 3)[: 3 * rounds]  # a pass has three batches


def test_metrics_hold_the_mean_of_every_width_that_took_its_turn(tmp_path: Path, data: Dataset) -> None:
    steps: dict[str, list[float]] = {}

    def watch(progress: Progress) -> None:
        for name, value in progress.losses.items() if not progress.accuracy else ():
            steps.setdefault(name, []).append(value)

    train(replace(TINY, epochs=1, deployed=0.0), out=tmp_path / "run", dataset=data, progress=watch)
    (line,) = (tmp_path / "run" / runs.METRICS).read_text().splitlines()
    losses = json.loads(line)["losses"]
    assert set(losses) == {"loss", "ce_32", "ce_8", "ce_4"}
    assert losses == pytest.approx({name: sum(values) / len(values) for name, values in steps.items()})


def test_the_average_ends_with_statistics_of_its_own(tmp_path: Path, data: Dataset) -> None:
    net = train(replace(TINY, ema=0.9, deployed=0.0), out=tmp_path / "run", dataset=data)
    norm = net.weighted()["conv"].norm.at(8)  # type: ignore[union-attr]
    before = copy.deepcopy(norm)
    calib.reestimate(net, decoded(data.train), bits=8)  # a quarter of them were held out in training
    torch.testing.assert_close(before.running_mean, norm.running_mean, atol=0.1, rtol=0.1)
    torch.testing.assert_close(before.running_var, norm.running_var, atol=0.1, rtol=0.25)


def test_a_batch_is_what_the_processes_can_share() -> None:
    assert launch.batch_size(TINY, images=160, processes=2) == TINY.batch_size
    assert launch.batch_size(replace(TINY, batch_size=128), images=75, processes=2) == 74


def test_every_pass_has_its_own_order(tmp_path: Path, data: Dataset) -> None:
    shown: list[torch.Tensor] = []

    class Watching(StandardObjective):
        def forward(self, images, labels, active, key=(0, 0, 0, 0)):
            shown.append(images)
            return super().forward(images, labels, active, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFENSES, "standard", lambda net, config: Watching(net, config.standard, Turns(1)))
        train(replace(TINY, epochs=1, deployed=0.0), out=tmp_path / "run", dataset=data)
    first, second = shown[:5], shown[5:]
    assert len(second) == 5 and not torch.equal(torch.cat(first), torch.cat(second))


@pytest.mark.parametrize("scales", ["learned", "observer"])
@pytest.mark.parametrize("batchnorm", ["per-bit", "shared"])
@pytest.mark.parametrize("bf16", [False, True])
def test_every_variant_has_gradients(scales: str, batchnorm: str, bf16: bool) -> None:
    config = QuantConfig(bits=(32, 8, 2), scales=scales, batchnorm=batchnorm)
    net = multibit(build("resnet8", classes=10), config=config).train()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = StandardObjective(net, Standard())(images, torch.arange(8), net.bits)["loss"]
    loss.backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


def test_bf16_statistics_are_in_real_numbers() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    nets = [multibit(build("resnet8", classes=10), bits=(4,)).train() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0](images)
    with torch.autocast("cpu", torch.bfloat16):
        nets[1](images)
    stem = [net.weighted()["conv"].norm.at(4) for net in nets]  # type: ignore[union-attr]
    # bf16 keeps 8 bits of each sum; the statistics are means over 65,536 of them
    torch.testing.assert_close(stem[1].running_mean, stem[0].running_mean, atol=1e-3, rtol=0.02)
    torch.testing.assert_close(stem[1].running_var, stem[0].running_var, atol=1e-3, rtol=0.02)


def test_the_deployed_stage_freezes_statistics_and_trains_weights() -> None:
    net = multibit(build("resnet8", classes=10), bits=(32, 4)).train()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    for b in net.bits:
        with at_bits(net, b):
            net(images)
    before = {n: t.clone() for n, t in net.state_dict().items() if "running" in n or "num_batches" in n}
    net.width.deployed = True
    for b in net.bits:
        with at_bits(net, b):
            net(images).logsumexp(1).sum().backward()
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())
    unit = net.weighted()["blocks_0_conv1"]
    assert unit.weight.grad is not None
    assert float(unit.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("bits", "epochs", "expected"),
    [
        ((32, 8, 5, 4, 2), 10, [(32, 8), (32, 8, 5), (32, 8, 5, 4), (32, 8, 5, 4, 2)]),
        ((4,), 3, [(4,), (4,), (4,)]),
        ((5, 4), 10, [(5,), (5, 4), (5, 4)]),
        ((32, 8, 2), 1, [(32, 8, 2)]),
    ],
)
def test_widths_enter_from_high_to_low(bits: tuple[int, ...], epochs: int, expected: list[tuple[int, ...]]) -> None:
    curriculum = Curriculum()
    assert [curriculum.active(bits, epochs, e) for e in range(len(expected))] == expected
    assert curriculum.active(bits, epochs, epochs - 1) == bits
    assert Curriculum(enabled=False).active(bits, epochs, 0) == bits


def test_no_width_enters_after_batchnorm_froze() -> None:
    curriculum = Curriculum(stage=0.4)
    assert curriculum.active((32, 8, 5, 4, 2), 10, 8, frozen_from=9) == (32, 8, 5, 4, 2)
    assert curriculum.active((32, 8, 5, 4, 2), 10, 7, frozen_from=9) == (32, 8, 5)


def test_learning_rates() -> None:
    assert learning_rate("cosine", 0.05, warmup=0.1) == pytest.approx(0.5)
    assert learning_rate("cosine", 1.0, warmup=0.1) == pytest.approx(0.0)
    assert [learning_rate("step", d, warmup=0.1) for d in (0.0, 0.5, 0.75)] == [1.0, 0.1, 0.01]


def test_a_learned_weight_step_stays_where_codes_are_used() -> None:
    net = multibit(build("resnet8", classes=10), bits=(8, 2))
    optimizer = make_optimizer(net, lr=0.1, weight_decay=0.0)
    unit = net.weighted()["conv"]
    step, other = unit.weight_steps["8"], unit.weight_steps["2"].detach().clone()
    old, weight = step.detach().clone(), unit.weight.detach().clone()
    step.grad = torch.full_like(step, -1e6)  # far up
    step.grad[0] = 1e-6
    unit.weight.grad = torch.ones_like(unit.weight)
    update(net, optimizer)
    torch.testing.assert_close(unit.weight, weight - 0.1 * 1.9)  # Nesterov's first move; weights are free
    torch.testing.assert_close(step[1:], unit.weight.detach().flatten(1).abs().amax(1)[1:] / 63.5)
    torch.testing.assert_close(step[0], old[0])
    assert torch.equal(unit.weight_steps["2"], other)  # not in the step, not moved


def test_every_parameter_is_in_the_optimizer_once() -> None:
    net = multibit(build("resnet8", classes=10))
    optimizer = make_optimizer(net, lr=0.1, weight_decay=1e-4)
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(listed) == len({id(p) for p in listed})
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert decayed == {id(unit.weight) for unit in net.weighted().values()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": 0}, "at least 1 epoch"),
        ({"lr": 0.0}, "lr > 0"),
        ({"lr": float("inf")}, "lr > 0"),
        ({"save_every": float("nan")}, "save_every"),
        ({"defense": "magic"}, "defence out of"),
        ({"deployed": 1.0}, "deployed"),
    ],
)
def test_wrong_choices_are_refused(change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(TINY, **change)


def test_folders_that_are_not_ours_are_refused(tmp_path: Path, whole: Path, data: Dataset) -> None:
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        train(TINY, out=tmp_path, dataset=data)
    with pytest.raises(InputError, match="holds a run"):
        train(TINY, out=whole, dataset=data)
    with pytest.raises(InputError, match="has finished"):
        train(TINY, out=whole, dataset=data, resume=True)
    with pytest.raises(InputError, match="choices of the run"):
        train(replace(TINY, lr=0.01), out=whole, dataset=data, resume=True)


def test_a_state_of_another_network_is_refused(tmp_path: Path, data: Dataset) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(TINY, out=out, dataset=data, stop=lambda: True)
    save_tensors(out / runs.STATE / "state.safetensors", {"net.x": torch.zeros(1)})
    with pytest.raises(InputError, match="does not fit"):
        train(TINY, out=out, dataset=data, resume=True)
