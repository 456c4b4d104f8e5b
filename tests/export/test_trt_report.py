"""The audit of TensorRT's report of layers, on reports in the form that its documentation shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeq.cli import main
from edgeq.errors import InputError
from edgeq.export.audit import audit
from edgeq.export.trt_report import audit_report

INT8, FP32 = "Thirty-two wide channel vectorized row major Int8 format.", "Row major linear FP32"


def tensor(name: str, dims: list[int], kind: str, *, split: bool = False) -> dict[str, Any]:
    types = {"Format": "Row major linear (kLINEAR)", "DataType": kind} if split else {"Format/Datatype": kind}
    return {"Name": name, "Dimensions": dims, **types}


def conv(kind: str = INT8, weights: str = "Int8", *, residual: bool = False, split: bool = False) -> dict[str, Any]:
    inputs = [tensor("x", [2, 512, 28, 28], kind, split=split)]
    inputs += [tensor("skip", [2, 256, 28, 28], kind, split=split)] * residual
    return {
        "Name": "conv1 + relu1",
        "LayerType": "CaskConvolution",
        "Inputs": inputs,
        "Outputs": [tensor("y", [2, 256, 28, 28], INT8)],
        "ParameterType": "Convolution",
        "OutMaps": 256,
        "Groups": 1,
        "Weights": {"Type": weights, "Count": 131072},
        "Precision": "FP32",
    }


MACS = 2 * 256 * 28 * 28 * 512


@pytest.mark.parametrize("split", [False, True])
def test_an_integer_convolution_is_counted(split: bool) -> None:
    found = audit_report({"Layers": [conv("Int8" if split else INT8, split=split, residual=True)], "Bindings": []})
    assert (found.macs, found.integer_macs) == (MACS, MACS) and found.adds == found.integer_adds == 2 * 256 * 28 * 28
    assert found.integer and not found.islands


@pytest.mark.parametrize(
    ("kind", "weights", "rule"), [(FP32, "Float", "weights"), ("Half", "Half", "weights"), (FP32, "Int8", "types")]
)
def test_a_float_convolution_is_an_island(kind: str, weights: str, rule: str) -> None:
    found = audit_report({"Layers": [conv(), conv(kind, weights)]})
    assert (found.macs, found.integer_macs, found.macs_percent) == (2 * MACS, MACS, 50)
    ((cause,),) = (island.causes for island in found.islands)
    assert cause.rule == rule and kind in cause.reason and "QuantizeLinear" in cause.change
    assert not found.integer


def test_products_additions_moves_and_opaque_groups() -> None:
    def layer(kind: str, inputs: list[dict], outputs: list[dict], **more: object) -> dict[str, Any]:
        return {"Name": kind, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, **more}

    x, y = tensor("x", [1, 64], INT8), tensor("y", [1, 10], FP32)
    layers = [
        layer("Reformat", [tensor("image", [1, 64], FP32)], [x]),
        layer("MatrixMultiply", [x, tensor("w", [64, 10], INT8)], [y]),
        layer("PointWiseV2", [x, x], [x], ParameterType="PointWise"),
        layer("kgen", [y], [y]),
    ]
    found = audit_report({"Layers": layers})
    assert (found.macs, found.integer_macs, found.adds, found.integer_adds) == (640, 640, 64, 64)
    assert found.uncounted == ("kgen",) and not found.integer
    assert [island.operators for island in found.islands] == [("kgen",)]


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ([], "another JSON document"),
        ({"Layers": []}, "another JSON document"),
        ({"Layers": "conv"}, "another JSON document"),
        ({"Layers": ["conv1", "conv2"]}, "got their names alone; write them with trtexec"),
        ({"Layers": [conv() | {"Outputs": [tensor("y", [-1, 256, -1, 28], INT8)]}]}, "expected shapes and types"),
        ({"Layers": [conv() | {"Outputs": [tensor("y", [-1, 1], "N/A due to dynamic shapes")]}]}, "state --shapes"),
    ],
)
def test_what_is_no_such_report_is_refused(report: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        audit_report(report)


def test_the_command_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layers.json"
    file.write_text(json.dumps({"Layers": [conv(), conv(FP32, "Float")]}))
    assert audit(file).macs == 2 * MACS
    assert main(["audit", str(file), "--strict", "--json", str(tmp_path / "out.json")]) == 2
    shown = capsys.readouterr().err
    assert "50.0 %" in shown and "its weights are Float" in shown
    assert json.loads((tmp_path / "out.json").read_text())["islands"][0]["causes"][0]["rule"] == "weights"
    file.write_text("{}")
    assert main(["audit", str(file)]) == 2
