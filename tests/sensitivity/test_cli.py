import json
import shutil
from pathlib import Path

import pytest

from edgeq.cli import main

KEPT = "run/results/sensitivity.json"


@pytest.fixture
def here(made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_measured_and_the_result_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["sensitivity", "run", "--images", "8", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    body = json.loads(out)
    assert (body["command"], body["images"], body["reference"]) == ("sensitivity", 8, 32)
    assert [width["bits"] for width in body["widths"]] == [4]
    assert body["widths"][0]["worst_first"][0] in err
    kept = (here / KEPT).read_text()
    assert json.loads(kept)["widths"] == body["widths"]
    assert main(["report", "run", "--out", "page.html"]) == 0
    page = (here / "page.html").read_text()
    worst = body["widths"][0]["worst_first"][0]
    for words in ("Which units cost accuracy", "codes written", worst):
        assert words in page
    weighted = next(layer for layer in body["widths"][0]["layers"] if layer["name"] == worst)["weights"] is not None
    assert (f"{worst}: float weights" in page) == weighted
    (here / KEPT).write_text("{}")
    assert main(["report", "run", "--out", "page.html"]) == 2
    assert "run edgeq sensitivity again" in capsys.readouterr().err


def test_stopped_it_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeq.sensitivity.measure", stop)
    assert main(["sensitivity", "run"]) == 130
    assert capsys.readouterr().err == "edgeq: stopped\n"
    assert not (here / KEPT).exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("sensitivity", "RUN"),
        ("sensitivity nowhere", "nowhere"),
        ("sensitivity run --bits 32", "[4], got 32"),
        ("sensitivity run --bits 8", "[4], got 8"),
        ("sensitivity run --images 0", "1 image or more, got 0"),
        ("sensitivity run --data sings", "'sings'"),
    ],
)
def test_a_mistake_is_one_line(here: Path, args: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(args.split()) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert words in err
    assert not (here / KEPT).exists()
