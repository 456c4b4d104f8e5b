from pathlib import Path

import onnx
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


def test_an_import_that_computes_something_else_is_not_written(
    static: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    from edgeq.export import importers
    from edgeq.export.importers.agreement import Agreement, Layer

    layers = (Layer("first", 100, 3, 1, 3), Layer("second", 100, 90, 255, 9000))
    monkeypatch.setattr(importers, "agreement", lambda *_, **__: Agreement(4, layers, 1))
    assert main(["export", str(static), "--out", str(tmp_path / "art")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "other codes in 90.0 % of 'second', by up to 255" in line
    assert not (tmp_path / "art").exists()


def test_weights_beside_the_file_are_found(static: Path, tmp_path: Path, capsys) -> None:
    model = onnx.load(static)
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    assert (tmp_path / "weights.bin").exists()
    assert main(["export", str(tmp_path / "out.onnx"), "--out", str(tmp_path / "art")]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("mean", [["0.5", "0.5"], ["nan"]])
def test_means_that_are_none_are_one_line(static: Path, tmp_path: Path, capsys, mean: list[str]) -> None:
    assert main(["export", str(static), "--out", str(tmp_path / "art"), "--mean", *mean]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("edgeq: expected")
