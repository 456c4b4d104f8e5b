from pathlib import Path

import pytest

from edgeq.cli import main
from edgeq.export import load
from edgeq.files import read_json


def test_a_quantized_file_becomes_an_artefact(static: Path, tmp_path: Path, capsys) -> None:
    out, said = tmp_path / "art", tmp_path / "said.json"
    assert main(["export", str(static), "--out", str(out), "--json", str(said)]) == 0, capsys.readouterr().err
    body = read_json(said)
    assert body["artefacts"][0]["exact"] is True and load(out).graph.name == static.stem
    short, long = (body["import"][kind] for kind in ("short", "long"))
    assert short["codes"] == long["codes"] and short["differ"] > long["differ"]
    assert short["same_class"] <= short["images"] and short["layers"][0]["layer"] == "pixels"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "4"], "expected no --bits with an ONNX file"),
        (["--std", "0"], "expected means and positive standard deviations"),
        (["--data", "signs:train=20,test=10"], "expected data of 5 classes, got 10"),
    ],
)
def test_options_that_do_not_fit_are_refused(static: Path, tmp_path: Path, capsys, options, message: str) -> None:
    assert main(["export", str(static), "--out", str(tmp_path / "art"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "art").exists()


def test_a_run_knows_its_pixels(tmp_path: Path, capsys) -> None:
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "art"), "--mean", "0.5"]) == 2
    assert "with an ONNX file only" in capsys.readouterr().err
