"""Several processes train as one: the same losses, and they stop, save and give up together."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeq import launch, runs
from edgeq.curriculum import Curriculum
from edgeq.defenses import Turns
from edgeq.files import load_tensors
from edgeq.quant.network import QuantConfig
from edgeq.training import TrainConfig


def _in_processes(script: str, out: Path, *, count: int = 2) -> None:
    """Run a script on so many processes, or as torchrun's absence has it on one; its argument is the run folder."""
    path = out.parent / f"{out.name}.py"
    path.write_text(f"import dataclasses, json, os, sys\n{script}")
    # --standalone finds a free port, so that tests run beside each other
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count > 1 else []
    subprocess.run([sys.executable, *launcher, str(path), str(out)], check=True, timeout=300)


@pytest.mark.ci_slow
def test_processes_stop_and_save_together(tmp_path: Path, spelled: str, tiny: TrainConfig) -> None:
    """One process alone gets the signal, and one alone thinks that it is time to save."""
    script = (
        "from edgeq.training import Interrupted, train\n"
        "rank, calls = int(os.environ['RANK']), []\n"
        f"config = {tiny!r}\n"
        "config = dataclasses.replace(config, save_every=0.0 if rank else 1e9)\n"
        "def stop():\n    calls.append(1)\n    return rank == 1 and len(calls) == 3\n"
        "try:\n    train(config, out=sys.argv[1], stop=stop)\n"
        "except Interrupted:\n    open(sys.argv[1] + f'/stopped{rank}', 'w').write(str(len(calls)))\n"
    )
    out = tmp_path / "run"
    _in_processes(spelled + script, out)
    assert [(out / f"stopped{rank}").read_text() for rank in (0, 1)] == ["3", "3"]
    assert load_tensors(out / runs.STATE / "state.safetensors")["position"].tolist() == [0, 3]


@pytest.mark.ci_slow
@pytest.mark.parametrize("widths", [0, 1], ids=["together", "in-turn"])
def test_two_processes_give_the_losses_of_one(tmp_path: Path, widths: int, spelled: str, tiny: TrainConfig) -> None:
    config = replace(
        tiny,
        epochs=1,
        deployed=0.0,
        quant=QuantConfig(bits=(32, 4)),
        curriculum=Curriculum(enabled=False),
        turns=Turns(widths),
    )
    script = (
        "from edgeq.training import train\n"
        "seen = []\n"
        f"config = {config!r}\n"
        "keep = lambda p: p.accuracy or seen.append([p.losses.get(name) for name in ('ce_32', 'ce_4')])\n"
        "train(config, out=sys.argv[1], progress=keep)\n"
        "open(sys.argv[1] + f'/losses{os.environ.get(\"RANK\", 0)}.json', 'w').write(json.dumps(seen))\n"
    )
    _in_processes(spelled + script, tmp_path / "one", count=1)
    _in_processes(spelled + script, tmp_path / "two")
    one = json.loads((tmp_path / "one" / "losses0.json").read_text())
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
def test_a_loss_that_one_process_cannot_use_stops_them_all(tmp_path: Path, spelled: str, tiny: TrainConfig) -> None:
    script = (
        "from edgeq.defenses import DEFENSES, StandardObjective\n"
        "from edgeq.training import Diverged, train\n"
        "class Broken(StandardObjective):\n"
        "    def forward(self, images, labels, active, key=(0, 0, 0, 0)):\n"
        "        found = super().forward(images, labels, active, key)\n"
        "        if os.environ['RANK'] == '0' and key[2] == 2:\n"
        "            found['loss'] = found['loss'] * float('inf')\n"
        "        return found\n"
        "DEFENSES['standard'] = lambda net, config: Broken(net, config.standard)\n"
        "try:\n"
        f"    train({tiny!r}, out=sys.argv[1])\n"
        "except Diverged as error:\n"
        "    open(sys.argv[1] + '/diverged' + os.environ['RANK'], 'w').write(str(error))\n"
    )
    _in_processes(spelled + script, tmp_path / "run")
    words = [(tmp_path / f"run/diverged{rank}").read_text() for rank in (0, 1)]
    assert all("expected a finite loss" in text and "batch 2; start anew" in text for text in words)


def test_a_batch_is_what_the_processes_can_share(tiny: TrainConfig) -> None:
    assert launch.batch_size(tiny, images=160, processes=2) == tiny.batch_size
    assert launch.batch_size(replace(tiny, batch_size=128), images=75, processes=2) == 74
