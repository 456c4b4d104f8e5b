"""From a run to bits of its layers, to a calibrated run with them, to its artefact; and training with them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeq.cli import main
from edgeq.cli.search import Measured, chosen, compared
from edgeq.quant.layer_bits import read_layer_bits, write_layer_bits
from edgeq.runs import load_run, read_info
from edgeq.sensitivity import Budget, Plan, Search

SEARCH = "sensitivity run --search --images 16 --bits 8 4 2"


@pytest.fixture
def here(made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.ci_slow
def test_bits_are_found_calibrated_exported_and_exact(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SEARCH.split(), "--budget-bytes", "45%", "--out", "mixed.toml", "--json", "search.json"]) == 0
    body = json.loads((here / "search.json").read_text())
    mixed, setting = body["networks"][0], body["setting"]
    assert mixed["within"] and mixed["weight_bytes"] <= body["budget"]["limit"]
    assert body["exact"] and body["written"] == "mixed"
    chosen_bits = read_layer_bits("mixed.toml")
    assert chosen_bits == {setting: {name: tuple(bits) for name, bits in mixed["layer_bits"].items()}}
    assert len(set(chosen_bits[setting].values())) > 1

    assert (
        main(["calibrate", "run", "--layer-bits", "mixed.toml", "--images", "32", "--out", "new", "--json", "new.json"])
        == 0
    )
    assert json.loads((here / "new.json").read_text())["bits"] == [setting]
    info, _ = load_run("new")
    assert info.quant.layer_bits == chosen_bits
    before, after = (load_run(name)[1].state_dict() for name in ("run", "new"))
    others = [name for name in before if f".{setting}" not in name and not name.endswith(f"_{setting}")]
    assert all(torch.equal(before[name], after[name]) for name in others)

    assert main(f"export new --bits {setting} --out art".split()) == 0
    manifest = json.loads((here / "art/manifest.json").read_text())
    assert manifest["weight_bits"] == {name: bits[0] for name, bits in chosen_bits[setting].items()}
    capsys.readouterr()
    assert main(["evaluate", "art", "--against", "new", "--json", "-"]) == 0  # every logit of every test image
    result = json.loads(capsys.readouterr().out)
    assert (result["equal"], result["mismatches"], result["total"]) == (True, 0, 100)


@pytest.mark.ci_slow
def test_a_mixed_run_resumes_to_the_bit(tmp_path: Path) -> None:
    from edgeq.errors import InputError
    from edgeq.quant.network import QuantConfig
    from edgeq.training import Interrupted, TrainConfig, train

    quant = QuantConfig(bits=(8, 4), layer_bits={4: {"blocks_0_conv1": (2, 8), "blocks_1_conv1": 5, "fc": 4}})
    config = TrainConfig(data="signs:train=120,test=20", quant=quant, epochs=2, batch_size=40, deployed=0.5)
    whole = train(config, out=tmp_path / "whole")
    seen: list[object] = []
    with pytest.raises(Interrupted):
        train(config, out=tmp_path / "run", progress=seen.append, stop=lambda: len(seen) == 3)
    with pytest.raises(InputError, match="quant="):
        train(replace(config, quant=QuantConfig(bits=(8, 4))), out=tmp_path / "run", resume=True)
    train(config, out=tmp_path / "run", resume=True)
    info, net = load_run(tmp_path / "run")
    assert info.quant == quant
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert net.weighted()["blocks_0_conv1"].weight_bits == {8: 8, 4: 2}


def test_training_takes_the_file(tmp_path: Path) -> None:
    from edgeq.cli.train import Train

    write_layer_bits(tmp_path / "mixed.toml", {4: {"fc": (4, 4)}})
    command = Train(out=tmp_path / "new", bits=(8, 4), layer_bits=tmp_path / "mixed.toml")
    assert command.config().quant.layer_bits == {4: {"fc": (4, 4)}}


def _plan(name: str, size: int) -> Plan:
    return Plan(name, {}, size, size, 4.0, 1.0 / size, size <= 10)


def test_the_best_that_was_measured_is_written() -> None:
    names = {"8 bits": 20, "5 bits": 12, "4 bits": 9, "2 bits": 5, "4 bits, codes 8": 8, "2 bits, codes 8": 4}
    found = Search(_plan("mixed", 10), tuple(_plan(name, size) for name, size in names.items()), True, 10)
    assert [plan.name for plan in compared(found)] == ["mixed", "4 bits", "5 bits", "4 bits, codes 8"]
    assert chosen(found, {}).name == "mixed"
    measured = {"mixed": Measured(10.0, 0.5), "4 bits": Measured(11.0, 0.4), "5 bits": Measured(20.0, 0.9)}
    assert chosen(found, measured).name == "4 bits"  # 5 bits are beyond the budget
    assert chosen(found, {**measured, "4 bits": Measured(9.0, 0.9)}).name == "mixed"


@pytest.mark.slow
def test_what_was_found_is_measured_beside_uniform_networks(here: Path) -> None:
    args = ["--budget-bops", "40%", "--measure", "--out", "mixed.json", "--json", "search.json", "--setting", "5"]
    assert main([*SEARCH.split(), *args]) == 0
    rows = {row["network"]: row for row in json.loads((here / "search.json").read_text())["networks"]}
    assert rows["mixed"]["logits_db"] is not None and 0 <= rows["mixed"]["accuracy"] <= 1
    written = json.loads((here / "search.json").read_text())["written"]
    within = [row["logits_db"] for row in rows.values() if row["within"] and row["logits_db"] is not None]
    assert rows[written]["logits_db"] == max(within)
    assert list(read_layer_bits("mixed.json")) == [5]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (f"{SEARCH} --out a.toml", "one budget, got 0"),
        (f"{SEARCH} --out a.toml --budget-bytes 9 --budget-bits 4", "one budget, got 2"),
        (f"{SEARCH} --budget-bytes 50%", "--out FILE.toml or FILE.json, got none"),
        (f"{SEARCH} --budget-bytes 50% --out a.yaml", "got a.yaml"),
        (f"{SEARCH} --budget-bytes many --out a.toml", "a number for --budget-bytes, got 'many'"),
        (f"{SEARCH} --budget-bits 50% --out a.toml", "a number for --budget-bits, got '50%'"),
        (f"{SEARCH} --budget-bytes -5 --out a.toml", "above 0"),
        (f"{SEARCH} --budget-bytes nan --out a.toml", "above 0"),
        (
            "sensitivity run --search --images 2 --bits 8 --budget-bytes 100 --out a.toml",
            "bytes of weights or more, got 100 bytes",
        ),
        (f"{SEARCH} --budget-bytes 50% --out a.toml --setting 9", "--setting from 2 to 8, got 9"),
        ("sensitivity run --search --bits 9 --budget-bits 4 --out a.toml", "got [9]"),
        ("sensitivity run --search --images 1 --budget-bits 4 --out a.toml", "2 images or more, got 1"),
        ("sensitivity run --budget-bits 4", "add --search"),
        ("calibrate run --layer-bits a.toml --out new", "a.toml: No such file"),
        ("calibrate run --layer-bits b.toml --out new", "got 'conv9'"),
        ("train --data signs:train=40,test=10 --bits 8 2 --layer-bits b.toml --out new", "[8, 2], got 4"),
        ("train --data signs:train=40,test=10 --bits 8 4 --layer-bits b.toml --out new", "got 'conv9'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    here: Path, args: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_layer_bits("b.toml", {4: {"conv9": (4, 4)}})
    capsys.readouterr()
    assert main(args.split()) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgeq: ")]
    assert len(complaint) == 1
    assert words in complaint[0]
    assert not (here / "a.toml").exists()
    assert not (here / "new").exists()
    assert read_info(here / "run").quant.layer_bits == {}
    assert Budget("bits", 4).amount == 4
