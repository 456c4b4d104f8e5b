import json
import shutil
from pathlib import Path

import pytest

from edgeq.cli import main

SMALL = "--images 12 --sizes 6 --attacks located --surrogates each --effort quick"


@pytest.fixture
def here(made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _json(capsys: pytest.CaptureFixture[str], args: str) -> tuple[dict, str]:
    capsys.readouterr()
    code = main([*args.split(), "--json", "-"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out), err


@pytest.mark.slow
def test_transfer_measures_keeps_and_repeats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body, err = _json(capsys, f"transfer run {SMALL}")
    assert body["command"] == "transfer"
    assert [line["name"] for line in body["headline"]] == ["32", "4"]
    assert body["integer"]["bits"] == [4]
    assert body["integer"]["equal"] is True
    assert {row["where"] for row in body["perceptual"]} >= {"input gradient"}
    for words in ("made on", "white-box", "likeness of the input gradients", "same"):
        assert words in err
    kept = json.loads((here / "run/results/robustness.json").read_text())
    assert kept["cells"] == body["cells"]
    # the same cells serve evaluate, which makes nothing anew
    cells = {path: path.stat().st_mtime_ns for path in (here / "run/results/robustness").glob("*")}
    again, _ = _json(capsys, f"evaluate run {SMALL} --random")
    assert [line["name"] for line in again["attacks"]["headline"]] == ["32", "4", "random"]
    for cell, before in zip(again["attacks"]["cells"], body["cells"], strict=True):
        assert cell["results"][:2] == before["results"]
    assert [row["bits"] for row in again["results"]] == [32, 4]
    assert {path: path.stat().st_mtime_ns for path in (here / "run/results/robustness").glob("*")} == cells


def test_ctrl_c_says_how_to_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeq.robustness.scene.Scene.make", interrupted)
    capsys.readouterr()
    assert main(f"transfer run {SMALL}".split()) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"go on with: edgeq transfer run {SMALL}" in last
