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


def _node(op: str, inputs: str, outputs: str, **attributes) -> onnx.NodeProto:
    names = outputs.split()
    return helper.make_node(op, inputs.split(), names, name=names[0], **attributes)


def _conv_net(*nodes: onnx.NodeProto, kind=TensorProto.FLOAT, ends=("logits",), **constants) -> onnx.ModelProto:
    """One convolution between quantizers; what is given takes the place of its name's, other nodes follow it."""
    rng = np.random.default_rng(0)
    values = {
        "xs": np.float32(0.02),
        "xz": np.uint8(100),
        "w": rng.integers(-100, 100, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.array([0.01, 0.02, 0.03, 0.01], np.float32),
        "wz": np.zeros(4, np.int8),
        "ys": np.float32(0.02),
        "yz": np.uint8(0),
        "l": rng.integers(-100, 100, (4, 5)).astype(np.int8),
        "ls": np.float32(0.01),
        "lz": np.int8(0),
    }
    usual = [
        _node("QuantizeLinear", "x xs xz", "xq"),
        _node("DequantizeLinear", "xq xs xz", "xd"),
        _node("DequantizeLinear", "w ws wz", "wd", axis=0),
        _node("Conv", "xd wd", "conv"),
    ]
    rest = [
        _node("Relu", "conv", "relu"),
        _node("QuantizeLinear", "relu ys yz", "rq"),
        _node("DequantizeLinear", "rq ys yz", "rd"),
        _node("GlobalAveragePool", "rd", "g"),
        _node("QuantizeLinear", "g ys yz", "gq"),
        _node("DequantizeLinear", "gq ys yz", "gd"),
        _node("Flatten", "gd", "flat"),
        _node("DequantizeLinear", "l ls lz", "ld"),
        _node("MatMul", "flat ld", "logits"),
    ]
    given = {node.name: node for node in nodes}
    names = {node.name for node in usual + rest}
    whole = [*usual, *(node for node in nodes if node.name not in names), *rest]
    infos = [helper.make_tensor_value_info("x", kind, ["n", 3, 16, 16])]
    infos += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends]
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in (values | constants).items()]
    graph = helper.make_graph([given.get(node.name, node) for node in whole], "net", infos[:1], infos[1:], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _quantized_as(kind: int) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    return _node("QuantizeLinear", "relu ys", "rq", output_dtype=kind), _node("DequantizeLinear", "rq ys", "rd")


PLUS = (_node("Add", "conv p", "plus"), _node("Relu", "plus", "relu"))
RESHAPE = _node("Reshape", "gd target", "flat")
BLOCKS = _node("DequantizeLinear", "w ws wz", "wd", axis=1, block_size=2)


def test_float_logits_are_the_accumulators(tools) -> None:
    model = _conv_net()
    imported = import_onnx(model)
    images = tools.images(3)
    (real,) = onnx_original(model)(imported.pixels.floats(images), ["logits"]).values()
    scale = imported.long.edges[imported.long.output].scale
    np.testing.assert_allclose(imported.long.run(images) * scale, real, atol=0.05)  # a few ties, worth 0.02 x 1.0 each


@pytest.mark.parametrize(
    "model",
    [
        _conv_net(*_quantized_as(TensorProto.INT8)),
        _conv_net(*_quantized_as(TensorProto.UINT4), ys=np.float32(0.3)),
        _conv_net(*PLUS, p=np.array([0.5, -0.5, 1.0, 0.0], np.float32).reshape(4, 1, 1)),
        _conv_net(*PLUS, p=np.float32(0.25)),
        _conv_net(RESHAPE, target=np.array([0, -1])),
        _conv_net(RESHAPE, target=np.array([-1, 4])),
        _conv_net(*PLUS, ws=np.array([0.01, 0, 1e-9, 0.02], np.float32), p=np.full((1, 4, 1, 1), 0.7, np.float32)),
    ],
)
def test_every_spelling_has_the_originals_codes(tools, model: onnx.ModelProto) -> None:
    imported, images = import_onnx(model), tools.images(8)
    ties = agreement(imported, onnx_original(model), images, graph=imported.long)
    assert ties.codes > 8000 and ties.differ <= ties.codes // 200 and ties.largest <= 1
    assert ties.same_class == 8
    assert all(proof.exact for proof in prove(imported.graph, build(imported.graph, "ort").SerializeToString(), "ort"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_conv_net(_node("Conv", "x wd", "conv")), "expected quantized inputs, got a float tensor at Conv 'conv'"),
        (_conv_net(_node("Sigmoid", "conv", "relu")), "got Sigmoid 'relu'"),
        (
            _conv_net(ys=np.array([0.1, 0.2, 0.3, 0.4], np.float32)),
            "expected one scale for an activation, got QuantizeLinear 'rq'",
        ),
        (_conv_net(yz=np.int16(0)), "expected codes of at most 8 bits, got int16 at QuantizeLinear 'rq'"),
        (_conv_net(yz=np.uint8(255)), "expected codes around 0 at 'conv'"),
        (_conv_net(ends=("logits", "relu")), "expected one input and one output, got 1 and 2"),
        (
            _conv_net(_node("DequantizeLinear", "rq ys undo", "rd"), undo=np.uint8(3)),
            "expected the zero point of its QuantizeLinear, got 3 for 0 at DequantizeLinear 'rd'",
        ),
        (_conv_net(ys=np.float32(0)), "expected a positive scale, got 0.0 at QuantizeLinear 'rq'"),
        (_conv_net(ys=np.float32("nan")), "expected a positive scale, got nan at QuantizeLinear 'rq'"),
        (_conv_net(kind=TensorProto.UINT8), "expected the float image as input, got UINT8 at 'x'"),
        (
            _conv_net(*PLUS, p=np.ones(16, np.float32)),
            r"expected one number for each channel, got the shape \(16,\) at Add 'plus'",
        ),
        (_conv_net(*PLUS, p=np.ones((1, 4, 16, 1), np.float32)), "expected one number for each channel, got the shape"),
        (_conv_net(RESHAPE, target=np.array([-1, 2])), "expected all axes but the batch in one, got Reshape 'flat'"),
        (_conv_net(RESHAPE, target=np.array([7, -1])), "expected all axes but the batch in one, got Reshape 'flat'"),
        (
            _conv_net(BLOCKS, ws=np.ones((4, 2, 1, 1), np.float32), wz=np.zeros((4, 2, 1, 1), np.int8)),
            "expected one scale, or one for each channel",
        ),
        (
            _conv_net(ws=np.array([0.01, -1, 1, 1], np.float32)),
            "expected scales of 0 or more, got -1.0 at DequantizeLinear 'wd'",
        ),
        (
            _conv_net(_node("MaxPool", "xd", "conv second", kernel_shape=[2, 2]), _node("Relu", "second", "relu")),
            "expected first outputs of operators alone, got 'second' at Relu 'relu'",
        ),
        (_conv_net(wz=np.full(4, -100, np.int8)), "zero point 0 at 'conv', got codes"),
        (_conv_net(l=np.ones((3, 5), np.int8)), "expected tensors whose shapes fit"),
    ],
)
def test_what_has_no_integer_form_is_named(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_onnx(model)


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
