import json
from pathlib import Path

import pytest

from edgeq.cli import main
from tests.poison.conftest import DATA

FEW = ["--data", DATA, "--per-class", "10", "--poisons", "4", "--steps", "2"]


def _json(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    capsys.readouterr()
    code = main([*args, "--json", "-"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_poisons_are_made_and_used_from_the_command_line(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    body = _json(capsys, "poison", "make", str(made_run), *FEW, "--out", "p")
    assert (body["command"], body["attack"], body["poisons"], body["eps"]) == ("poison", "bullseye", 4, 8)
    judged = _json(capsys, "evaluate", str(made_run), "--data", "poisoned:p", "--bits", "4")
    assert judged["results"][0]["total"] == 100


def test_a_plan_is_carried_out_from_the_command_line(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    body = _json(capsys, "poison", "run", str(made_run), *FEW, "--targets", "1", "--arms", "none", "--out", "o")
    assert [entry["arm"] for entry in body["arms"]] == ["none"]
    kept = json.loads(Path("o/poison.json").read_text())
    assert kept == {name: body[name] for name in kept}
