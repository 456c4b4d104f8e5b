import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.cli import main
from edgeq.errors import InputError
from edgeq.export import build, save
from edgeq.export.audit import audit

MACS = 16 * 16 * 9 * 64  # of one 3x3 convolution of 16 channels on 8x8


@dataclass
class Model:
    """A Q/DQ model as other tools write it: uint8 zero point 0 unless said otherwise."""

    opset: tuple[int, int] = (21, 10)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def const(self, value: object) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def qdq(self, x: str, zero: np.generic = np.uint8(0)) -> str:  # noqa: B008  a constant
        scale = np.float32(0.05)
        quantized = self.op("QuantizeLinear", x, self.const(scale), self.const(zero))
        return self.op("DequantizeLinear", quantized, self.const(scale), self.const(zero))

    def conv(self, x: str, dtype: type = np.int8) -> str:
        limit = 127 if dtype is np.int8 else 1
        codes = self.const(self.rng.integers(-limit, limit + 1, (16, 16, 3, 3)).astype(dtype))
        scale, zero = self.const(np.full(16, 0.01, np.float32)), self.const(np.zeros(16, dtype))
        weight = self.op("DequantizeLinear", codes, scale, zero, axis=0)
        return self.op("Conv", x, weight, pads=[1, 1, 1, 1], kernel_shape=[3, 3])

    def bytes(self, out: str, shape: tuple[int | str, ...] = ("n", 16, 8, 8)) -> bytes:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "g", [x], [onnx.ValueInfoProto(name=out)], self.constants)
        imports = [helper.make_opsetid("", self.opset[0])]
        return helper.make_model(graph, opset_imports=imports, ir_version=self.opset[1]).SerializeToString()


Plant = Callable[[Model, str], str]


def residual(m: Model, first: Plant | None = None) -> bytes:
    """Return conv, conv, add, ReLU, each quantized; `first` may plant something after the first convolution."""
    x = m.qdq("x")
    y = m.qdq(m.op("Relu", m.conv(x))) if first is None else first(m, x)
    y = m.qdq(m.conv(y), np.uint8(128))
    return m.bytes(m.qdq(m.op("Relu", m.op("Add", y, x))))


def signed_relu(m: Model, x: str) -> str:
    return m.qdq(m.op("Relu", m.conv(x)), np.int8(0))


def float_clip(m: Model, x: str) -> str:
    return m.qdq(m.op("Clip", m.conv(x), m.const(np.float32(0)), m.const(np.float32(31 * 0.05))))


def reduce_mean(m: Model, x: str) -> str:
    return m.qdq(m.op("ReduceMean", m.qdq(m.op("Relu", m.conv(x))), m.const(np.array([2, 3])), keepdims=1))


def transposed(m: Model, x: str) -> str:
    weight = m.const(m.rng.normal(size=(16, 16, 3, 3)).astype(np.float32))
    return m.qdq(m.op("ConvTranspose", m.qdq(m.op("Relu", m.conv(x))), weight, pads=[1, 1, 1, 1]))


def difference(m: Model, x: str) -> str:
    return m.qdq(m.op("Sub", m.qdq(m.op("Relu", m.conv(x))), x), np.uint8(128))


def constant_map(m: Model, x: str) -> str:
    return m.qdq(m.op("Mul", m.qdq(m.op("Relu", m.conv(x))), m.const(m.rng.normal(size=(1, 16, 8, 8)).astype("f"))))


def unquantized_residual(m: Model, x: str) -> str:
    return m.qdq(m.op("Relu", m.op("Add", m.conv(x), x)))


def int4_weights(m: Model, x: str) -> str:
    return m.qdq(m.op("Relu", m.conv(x, ml_dtypes.int4)))


def sigmoid(m: Model, x: str) -> str:
    return m.qdq(m.op("Sigmoid", m.conv(x)))


def unquantized_between(m: Model, x: str) -> str:
    return m.qdq(m.op("Relu", m.conv(m.op("Relu", m.conv(x)))))


# what is planted -> share of MACs, share of additions, rule, type of the operator, words of the reason and the change
PLANTED: dict[Plant, tuple[float, float, str, str, str, str]] = {
    signed_relu: (50, 100, "relu", "FusedConv", "zero point 0 of int8", "UINT8 with zero point 0"),
    float_clip: (50, 100, "clip", "FusedConv", "Clip in float stands between Conv and", "the Clip on its 8 bits"),
    reduce_mean: (100, 100, "operator", "ReduceMean", "no integer kernel", "GlobalAveragePool"),
    transposed: (66.7, 100, "operator", "ConvTranspose", "no integer kernel", "replace it"),
    difference: (100, 50, "operator", "Sub", "no integer kernel", "replace it"),
    constant_map: (100, 100, "operator", "Mul", "no integer kernel", "replace it"),
    unquantized_residual: (50, 50, "residual", "Add", "input from Conv 'Conv3' is not quantized", "between the two"),
    int4_weights: (50, 100, "weights", "Conv", "INT4 weights are dequantized at every run", "Cast the packed weights"),
    sigmoid: (50, 100, "activation", "FusedConv", "Sigmoid is no part", "between the Conv and the Sigmoid"),
    unquantized_between: (33.3, 100, "input", "Conv", "its input is float", "between the two"),
}


@pytest.mark.parametrize("plant", PLANTED, ids=[plant.__name__ for plant in PLANTED])
def test_a_planted_float_island_is_found_and_explained(plant: Plant) -> None:
    macs, adds, rule, op_type, reason, change = PLANTED[plant]
    result = audit(residual(Model(), plant))
    assert result.macs_percent == pytest.approx(macs, abs=0.1) and result.adds_percent == adds
    (island,) = result.islands
    (cause,) = island.causes
    assert (cause.rule, cause.op_type, cause.count) == (rule, op_type, 1)
    assert reason in cause.reason and change in cause.change
    assert island.macs == result.macs - result.integer_macs
    assert not result.integer


@pytest.mark.parametrize("flat", [True, False])
def test_what_keeps_a_classifier_in_float_is_named(flat: bool) -> None:
    """Weights without a zero point, or a Flatten that Q and DQ do not follow."""
    m = Model()
    y = m.op("Flatten", m.qdq(m.op("GlobalAveragePool", m.qdq(m.op("Relu", m.conv(m.qdq("x")))))))
    zero = [m.const(np.int8(0))] if flat else []
    weight = m.op(
        "DequantizeLinear", m.const(m.rng.integers(-9, 9, (5, 16)).astype(np.int8)), m.const(np.float32(1)), *zero
    )
    result = audit(m.bytes(m.qdq(m.op("Gemm", y if flat else m.qdq(y), weight, transB=1))))
    if result.integer:
        pytest.skip("this ONNX Runtime takes it as it is")
    ((cause,),) = (island.causes for island in result.islands)
    assert (cause.rule, cause.op_type) == ("input" if flat else "weights", "Gemm")
    assert ("behind the Flatten" if flat else "INT8 zeros") in cause.change


def test_the_model_they_are_planted_in_is_integer() -> None:
    result = audit(residual(Model()))
    assert result.integer and not result.islands and not result.refused
    assert (result.macs, result.adds) == (2 * MACS, 16 * 64)


def test_signed_activations_that_two_operators_read_are_named() -> None:
    """ONNX Runtime moves the others to uint8 on x86, and then the types differ."""
    m = Model()
    x = m.qdq("x", np.int8(3))
    y = m.qdq(m.op("Relu", m.conv(x)), np.int8(-128))
    result = audit(m.bytes(m.qdq(m.op("Relu", m.op("Add", m.qdq(m.conv(y), np.int8(0)), x)), np.int8(-128))))
    if result.integer:
        pytest.skip("this processor's ONNX Runtime leaves int8 as it is")
    causes = [cause for island in result.islands for cause in island.causes]
    assert [cause.rule for cause in causes] == ["types", "types"] and {c.op_type for c in causes} == {"Conv", "Add"}
    assert "int8" in causes[0].reason and "UINT8" in causes[0].change


def test_int2_weights_that_the_engine_refuses_are_named() -> None:
    result = audit(residual(Model((25, 13)), lambda m, x: m.qdq(m.op("Relu", m.conv(x, ml_dtypes.int2)))))
    assert "int2" in result.refused and not result.integer and result.macs_percent == 0
    rules = [cause.rule for island in result.islands for cause in island.causes]
    assert rules[0] == "weights" and set(rules[1:]) == {"refused"}


def test_a_float_model_is_one_island() -> None:
    m = Model()
    weight = m.const(np.zeros((16, 16, 3, 3), np.float32))
    y = m.op("Relu", m.op("Conv", "x", weight, pads=[1, 1, 1, 1]))
    result = audit(m.bytes(m.op("Softmax", m.op("Add", y, "x"), axis=1)))
    assert (result.integer_macs, result.macs, result.adds) == (0, MACS, 16 * 64) and len(result.islands) == 1
    assert {cause.rule for cause in result.islands[0].causes} == {"weights", "residual", "operator"}
    assert "integer output decides" in result.islands[0].causes[-1].change


def test_an_output_without_quantization_is_said() -> None:
    m = Model()
    result = audit(m.bytes(m.conv(m.qdq("x"))))
    assert [cause.rule for cause in result.islands[0].causes] == ["output"]


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_residual_networks_for_onnx_runtime_are_integer(graphs, bits: int) -> None:
    for target in ("ort", "proof"):
        result = audit(build(graphs.resnet(bits), target).SerializeToString())
        assert result.integer and not result.islands and not result.uncounted
    ort = audit(build(graphs.resnet(bits), "ort").SerializeToString())
    assert (ort.macs, ort.adds) == (40_813_184, 86_016)  # ResNet-20 on 32x32


def test_signed_models_for_tensorrt_stay_in_float_elsewhere(graphs) -> None:
    result = audit(build(graphs.resnet(8), "trt").SerializeToString())
    assert result.adds_percent == 0 and 40 < result.macs_percent < 60
    rules = {cause.rule for island in result.islands for cause in island.causes}
    assert rules >= {"relu", "operator"}


NAMES = [
    "resnet8",
    *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.ci_slow]) for name in ("resnet20", "resnet56")),
    *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.ci_slow]) for name in ("vgg16_bn", "mobilenet_v2")),
    pytest.param("resnet32", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", NAMES)
def test_built_in_networks_are_integer(name: str) -> None:
    from edgeq import models
    from edgeq.export.lower import lower
    from edgeq.quant.convert import multibit

    net = multibit(models.build(name, classes=10), bits=(32, 8, 5, 4, 2))
    for bits in (8, 5, 4, 2):
        result = audit(build(lower(net, bits=bits), "ort").SerializeToString())
        assert result.integer and not result.islands and result.macs > 1_000_000, (name, bits)


def test_artefacts_and_files_are_audited(graphs, tmp_path: Path) -> None:
    art = save(graphs.resnet(4, width=4, blocks=1, size=8), path=tmp_path / "art")
    assert audit(art) == audit(art / "model.onnx") == audit((art / "model.onnx").read_bytes())
    assert json.dumps(audit(art).as_dict())


def test_free_axes_need_shapes(tmp_path: Path) -> None:
    m = Model()
    model = m.bytes(m.qdq(m.conv(m.qdq("x"))), ("n", 16, "h", "w"))
    with pytest.raises(InputError, match=r"at input 'x'; give its shape"):
        audit(model)
    assert audit(model, shapes={"x": (1, 16, 8, 8)}).macs == MACS
    with pytest.raises(InputError, match="shapes of inputs x, got one of 'y'"):
        audit(model, shapes={"y": (1,)})
    with pytest.raises(InputError, match="shapes that the model takes"):
        audit(model, shapes={"x": (1, 3, 8, 8)})


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="artefact folder or an ONNX file"):
        audit(tmp_path / "none.onnx")
    with pytest.raises(InputError, match=r"with manifest\.json"):
        audit(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="a model that ONNX Runtime runs"):
        audit(tmp_path / "bad.onnx")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(residual(Model(), float_clip))
    assert main(["audit", str(path), "--json", "-"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["command"] == "audit" and document["macs_percent"] == 50
    assert document["islands"][0]["causes"][0]["rule"] == "clip"
    assert "50.0 %" in said.err and "Clip in float" in said.err
    assert main(["audit", str(path), "--strict"]) == 2
    assert "expected" in capsys.readouterr().err.splitlines()[-1]
    assert main(["audit", str(path), "--shapes", "x"]) == 2
    assert "expected a shape such as image=1,3,224,224, got 'x'" in capsys.readouterr().err
    path.write_bytes(residual(Model()))
    assert main(["audit", str(path), "--strict"]) == 0
