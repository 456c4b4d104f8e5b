from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.errors import InputError
from edgeq.export import save
from edgeq.export.dialects import build
from edgeq.export.importers import Pixels, agreement, import_onnx, onnx_original
from edgeq.export.verify import prove


def test_a_static_quantized_network_keeps_its_codes_up_to_ties(static: Path, tools) -> None:
    imported = import_onnx(static)
    images = tools.images(40, 9)
    exact = agreement(imported, onnx_original(str(static)), images, graph=imported.long)
    assert exact.codes > 100_000 and exact.differ <= exact.codes // 1000 and exact.largest <= 1
    assert exact.same_class == 40
    price = agreement(imported, onnx_original(str(static)), images)
    assert 0 < price.differ < price.codes // 4 and price.largest <= 4 and price.same_class >= 38
    assert 0 < max(imported.change.values()) < 0.05
    assert {layer.name for layer in price.layers} == set(imported.observed)


def test_what_was_imported_is_exported_with_its_proof(static: Path, tools, tmp_path: Path) -> None:
    imported = import_onnx(static, classes=("a", "b", "c", "d", "e"))
    assert save(imported.graph, path=tmp_path / "art", inputs=tools.images(4)).is_dir()


@pytest.mark.parametrize("target", ["proof", "qonnx"])
def test_other_dialects_are_proved_too(static: Path, target: str) -> None:
    graph = import_onnx(static).graph
    assert all(proof.exact for proof in prove(graph, build(graph, target).SerializeToString(), target))


def test_long_multipliers_are_for_comparison_only(static: Path) -> None:
    long = import_onnx(static).long
    failed = [p.claim for p in prove(long, build(long, "qonnx").SerializeToString(), "qonnx") if not p.exact]
    assert "inequality" in failed


def test_another_view_of_pixels_is_a_table_fitted(tmp_path: Path, tools) -> None:
    model = _conv_net()
    imported = import_onnx(model, pixels=Pixels(mean=(0.5, 0.4, 0.45), std=(0.25, 0.3, 0.2)))
    result = agreement(imported, onnx_original(model), tools.images(8), graph=imported.long)
    assert result.layers[0].name == "pixels" and result.layers[0].differ < result.layers[0].codes // 50


def _conv_net(**changes) -> onnx.ModelProto:
    """One convolution between quantizers, of which a test spoils something."""
    given = {"op": "Conv", "zero": np.uint8(0), "quantize": True, "out": 1, "scale": np.float32(0.02), "middle": "Relu"}
    given |= {"undo": None, "kind": TensorProto.FLOAT, "plus": None, "flat": None, "block": 0, "dtype": 0} | changes
    rng = np.random.default_rng(0)
    values = {
        "xs": np.float32(0.02),
        "xz": np.uint8(100),
        "w": rng.integers(-100, 100, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.array([0.01, 0.02, 0.03, 0.01], np.float32),
        "wz": np.zeros(4, np.int8),
        "ys": given["scale"],
        "yz": given["zero"],
        "undo": given["zero"] if given["undo"] is None else given["undo"],
        "l": rng.integers(-100, 100, (4, 5)).astype(np.int8),
        "ls": np.float32(0.01),
        "lz": np.int8(0),
    }
    values |= {name: changes[name] for name in values.keys() & changes.keys() if name != "undo"}
    second = given["op"] == "MaxPool"
    blocks = {"block_size": given["block"]} if given["block"] else {}
    if blocks:
        values["wz"] = np.zeros(given["ws"].shape, np.int8)
    first = ["xd" if given["quantize"] else "x", "wd"]
    layer = helper.make_node(given["op"], first, ["c"], name="conv")
    if second:
        layer = helper.make_node("MaxPool", ["xd"], ["c", "second"], name="conv", kernel_shape=[2, 2])
    source = "second" if second else "c"
    plus = []
    if given["plus"] is not None:
        values["p"], source = given["plus"], "cp"
        plus = [helper.make_node("Add", ["c", "p"], ["cp"], name="plus")]
    flat = helper.make_node("Flatten", ["gd"], ["f"])
    if given["flat"]:
        values["target"] = np.array(given["flat"], np.int64)
        flat = helper.make_node("Reshape", ["gd", "target"], ["f"], name="flat")
    quant, pair = ["r", "ys", "yz"], ["rq", "ys", "undo"]
    typed = {}
    if given["dtype"]:
        quant, pair, typed = quant[:2], ["rq", "ys"], {"output_dtype": given["dtype"]}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1 if blocks else 0, **blocks),
        layer,
        *plus,
        helper.make_node(given["middle"], [source], ["r"], name="middle"),
        helper.make_node("QuantizeLinear", quant, ["rq"], name="quant", **typed),
        helper.make_node("DequantizeLinear", pair, ["rd"]),
        helper.make_node("GlobalAveragePool", ["rd"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "ys", "yz"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", "ys", "yz"], ["gd"]),
        flat,
        helper.make_node("DequantizeLinear", ["l", "ls", "lz"], ["ld"]),
        helper.make_node("MatMul", ["f", "ld"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info("x", given["kind"], ["n", 3, 16, 16])]
    ends += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "r")[: given["out"]]]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_float_logits_are_the_accumulators(tools) -> None:
    model = _conv_net()
    imported = import_onnx(model)
    images = tools.images(3)
    (real,) = onnx_original(model)(imported.pixels.floats(images), ["logits"]).values()
    scale = imported.long.edges[imported.long.output].scale
    np.testing.assert_allclose(imported.long.run(images) * scale, real, atol=0.05)  # a few ties, worth 0.02 x 1.0 each


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": TensorProto.INT8},
        {"dtype": TensorProto.UINT4, "scale": np.float32(0.3)},
        {"plus": np.array([0.5, -0.5, 1.0, 0.0], np.float32).reshape(4, 1, 1)},
        {"plus": np.float32(0.25)},
        {"flat": [0, -1]},
        {"flat": [-1, 4]},
        {"ws": np.array([0.01, 0.0, 1e-9, 0.02], np.float32), "plus": np.full((1, 4, 1, 1), 0.7, np.float32)},
    ],
)
def test_every_spelling_has_the_originals_codes(tools, changes: dict) -> None:
    model, images = _conv_net(**changes), tools.images(8)
    imported = import_onnx(model)
    ties = agreement(imported, onnx_original(model), images, graph=imported.long)
    assert ties.codes > 8000 and ties.differ <= ties.codes // 200 and ties.largest <= 1
    assert ties.same_class == 8
    assert all(proof.exact for proof in prove(imported.graph, build(imported.graph, "ort").SerializeToString(), "ort"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize": False}, "expected quantized inputs, got a float tensor at Conv 'conv'"),
        ({"middle": "Sigmoid"}, "got Sigmoid 'middle'"),
        (
            {"scale": np.array([0.1, 0.2, 0.3, 0.4], np.float32)},
            "expected one scale for an activation, got QuantizeLinear 'quant'",
        ),
        ({"zero": np.int16(0)}, "expected codes of at most 8 bits, got int16 at QuantizeLinear 'quant'"),
        ({"zero": np.uint8(255), "middle": "Relu"}, "expected codes around 0 at 'conv'"),
        ({"out": 2}, "expected one input and one output, got 1 and 2"),
        ({"undo": np.uint8(3)}, "expected the zero point of its QuantizeLinear, got 3 for 0 at DequantizeLinear"),
        ({"scale": np.float32(0)}, "expected a positive scale, got 0.0 at QuantizeLinear 'quant'"),
        ({"scale": np.float32("nan")}, "expected a positive scale, got nan at QuantizeLinear 'quant'"),
        ({"kind": TensorProto.UINT8}, "expected the float image as input, got UINT8 at 'x'"),
        (
            {"plus": np.ones(16, np.float32)},
            r"expected one number for each channel, got the shape \(16,\) at Add 'plus'",
        ),
        ({"plus": np.ones((1, 4, 16, 1), np.float32)}, "expected one number for each channel, got the shape"),
        ({"flat": [-1, 2]}, "expected all axes but the batch in one, got Reshape 'flat'"),
        ({"flat": [7, -1]}, "expected all axes but the batch in one, got Reshape 'flat'"),
        ({"ws": np.ones((4, 2, 1, 1), np.float32), "block": 2}, "expected one scale, or one for each channel"),
        ({"ws": np.array([0.01, -1, 1, 1], np.float32)}, "expected scales of 0 or more, got -1.0 at DequantizeLinear"),
        ({"op": "MaxPool"}, "expected first outputs of operators alone, got 'second' at Relu 'middle'"),
        ({"wz": np.full(4, -100, np.int8)}, "zero point 0 at 'conv', got codes"),
        ({"l": np.ones((3, 5), np.int8)}, "expected tensors whose shapes fit"),
    ],
)
def test_what_has_no_integer_form_is_named(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_onnx(_conv_net(**changes))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="expected an ONNX model"):
        import_onnx(tmp_path / "x.onnx")
    with pytest.raises(InputError, match="expected an ONNX file"):
        import_onnx(tmp_path / "y.onnx")


def test_a_float_network_is_refused(tools) -> None:
    with pytest.raises(
        InputError, match="expected quantized inputs, got a float tensor at Conv 'conv0'; put a quantizer"
    ):
        import_onnx(tools.floats())
