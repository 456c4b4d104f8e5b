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
    given |= changes
    rng = np.random.default_rng(0)
    values = {
        "xs": np.float32(0.02),
        "xz": np.uint8(100),
        "w": rng.integers(-100, 100, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.array([0.01, 0.02, 0.03, 0.01], np.float32),
        "wz": np.zeros(4, np.int8),
        "ys": given["scale"],
        "yz": given["zero"],
        "l": rng.integers(-100, 100, (4, 5)).astype(np.int8),
        "ls": np.float32(0.01),
        "lz": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node(given["op"], ["xd" if given["quantize"] else "x", "wd"], ["c"], name="conv"),
        helper.make_node(given["middle"], ["c"], ["r"], name="middle"),
        helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["rq"], name="quant"),
        helper.make_node("DequantizeLinear", ["rq", "ys", "yz"], ["rd"]),
        helper.make_node("GlobalAveragePool", ["rd"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "ys", "yz"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", "ys", "yz"], ["gd"]),
        helper.make_node("Flatten", ["gd"], ["f"]),
        helper.make_node("DequantizeLinear", ["l", "ls", "lz"], ["ld"]),
        helper.make_node("MatMul", ["f", "ld"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])]
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
