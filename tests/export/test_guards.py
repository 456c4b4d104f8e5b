"""Mistakes of engines that the dialects keep clear of, each tried on the engine at hand.

A test fails when no version that edgeq takes makes the mistake any more: then what the message names can go. A newer
engine without it is skipped, since older ones are still taken; so is one from before the mistake was seen.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.export.dialects import TARGETS, build
from edgeq.export.engines import OPENVINO_EXACT, session
from edgeq.export.signalstack import exchanged, kept_signal_stack

BITS = (8, 5, 4, 2)


@dataclass(frozen=True)
class Small:
    """A model of a few operators, written as `op inputs -> output`."""

    nodes: tuple[tuple[str, str, str, dict], ...]
    constants: Mapping[str, object]
    version: tuple[int, int] = (21, 10)

    def bytes(self, feeds: Mapping[str, np.ndarray], kind: int) -> bytes:
        nodes = [helper.make_node(op, ins.split(), [out], **attributes) for op, ins, out, attributes in self.nodes]
        kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
        inputs = [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in feeds.items()]
        result = helper.make_tensor_value_info(self.nodes[-1][2], kind, None)
        constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()]
        graph = helper.make_graph(nodes, "small", inputs, [result], constants)
        opset, ir_version = self.version
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version).SerializeToString()

    def ort(self, feeds: Mapping[str, np.ndarray], kind: int, level: str = "all") -> np.ndarray:
        return np.asarray(session(self.bytes(feeds, kind), level).run(None, dict(feeds))[0])

    def openvino(self, feeds: Mapping[str, np.ndarray], kind: int, **settings: str) -> np.ndarray:
        openvino = pytest.importorskip("openvino", reason="needs pip install 'edgeq[openvino]'")
        core = openvino.Core()
        read = core.read_model(self.bytes(feeds, kind))
        with kept_signal_stack():
            return np.asarray(core.compile_model(read, "CPU", settings)(dict(feeds))[0])


def refused(run: Callable[[], object]) -> bool:
    """Tell whether an engine does not take a model."""
    try:
        run()
    except Exception:  # each engine has exceptions of its own
        return True
    return False


def new_ir_version() -> bool:
    """ONNX Runtime refuses the IR version that onnx writes unless told otherwise."""
    identity = helper.make_node("Neg", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph([identity], "g", ends[:1], ends[1:]))
    return refused(lambda: session(model.SerializeToString()))


def varint_tensors() -> bool:
    """make_tensor stores small integers as varints, ten bytes for a negative one."""
    values = np.full(1000, -1, np.int8)
    return helper.make_tensor("w", TensorProto.INT8, values.shape, values).ByteSize() > 5000


def int2_weights_behind_dequantize() -> bool:
    """ONNX Runtime fuses INT2 weights into a QLinearConv, which has no such type, and then refuses the model."""
    values = np.ones((2, 1, 1, 1), ml_dtypes.int2)
    constants = {"s": np.float32(1), "z": np.uint8(0), "w": values, "v": np.ones(2, np.float32)}
    nodes = (
        ("QuantizeLinear", "x s z", "xq", {}),
        ("DequantizeLinear", "xq s z", "xd", {}),
        ("DequantizeLinear", "w v", "wd", {"axis": 0}),
        ("Conv", "xd wd", "c", {}),
        ("QuantizeLinear", "c s z", "y", {}),
    )
    model = Small(nodes, constants, (25, 13))
    feeds = {"x": np.zeros((1, 1, 2, 2), np.float32)}
    assert not refused(lambda: model.ort(feeds, TensorProto.UINT8, "disabled"))
    return refused(lambda: model.ort(feeds, TensorProto.UINT8))


def int64_max() -> bool:
    """Max of int64 is wrong from 2^31 on (an Eigen kernel for SSE2)."""
    x = np.full(16, (1 << 31) + 5, np.int64)
    model = Small((("Max", "x z", "y", {}),), {"z": np.zeros(16, np.int64)})
    return not np.array_equal(model.ort({"x": x}, TensorProto.INT64), x)


def int64_sum() -> bool:
    """ReduceSum of int64 is inexact above 2^52."""
    x = np.array([[(1 << 60) + 1, 1, 1]], np.int64)
    model = Small((("ReduceSum", "x a", "y", {"keepdims": 0}),), {"a": np.array([1])})
    return int(model.ort({"x": x}, TensorProto.INT64)[0]) != (1 << 60) + 3


def int32_max_pool() -> bool:
    """There is no MaxPool of int32."""
    model = Small((("MaxPool", "x", "y", {"kernel_shape": [2, 2]}),), {})
    feeds = {"x": np.zeros((1, 1, 2, 2), np.int32)}
    return refused(lambda: model.ort(feeds, TensorProto.INT32))


def openvino_int32_division() -> bool:
    """OpenVINO divides int32 in float32."""
    x = np.array([(151 << 17) * 2 - 1], np.int32)  # rounded to 2^25 and something it is one quotient more
    model = Small((("Div", "x d", "y", {}),), {"d": np.int32(1 << 18)})
    return int(model.openvino({"x": x}, TensorProto.INT32)[0]) != int(x[0]) >> 18


def residual() -> tuple[Small, dict[str, np.ndarray]]:
    """Two quantized convolutions, added and quantized."""
    rng = np.random.default_rng(0)
    weight = {f"w{i}": rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8) for i in (1, 2)}
    constants = {"s1": np.float32(1), "s2": np.float32(0.67), "z": np.int8(0), "m": np.float32(0.0007), **weight}
    nodes = [("Cast", "x", "f", {"to": 1}), ("QuantizeLinear", "f s1 z", "q", {})]
    nodes += [("DequantizeLinear", "q s1 z", "d", {})]
    for i in (1, 2):
        nodes += [("DequantizeLinear", f"w{i} m z", f"v{i}", {}), ("Conv", f"d v{i}", f"c{i}", {})]
        nodes += [("QuantizeLinear", f"c{i} s1 z", f"q{i}", {}), ("DequantizeLinear", f"q{i} s{i} z", f"d{i}", {})]
    nodes += [("Add", "d1 d2", "s", {}), ("QuantizeLinear", "s s1 z", "y", {})]
    return Small(tuple(nodes), constants), {"x": rng.integers(0, 128, (1, 3, 16, 16)).astype(np.uint8)}


def openvino_unrounded_branch() -> bool:
    """OpenVINO's low-precision transformations do not round a convolution's result before an addition."""
    model, feeds = residual()
    expected = model.ort(feeds, TensorProto.INT8, "disabled")
    np.testing.assert_array_equal(model.openvino(feeds, TensorProto.INT8, **OPENVINO_EXACT), expected)
    fused = {"EXECUTION_MODE_HINT": "ACCURACY"}
    return not np.array_equal(model.openvino(feeds, TensorProto.INT8, **fused), expected)


def openvino_dynamic_quantization() -> bool:
    """OpenVINO quantizes the inputs of a linear layer anew, in groups, unless it is told to be accurate."""
    rng = np.random.default_rng(0)
    constants = {"s": np.float32(1), "z": np.int8(0), "w": rng.integers(-127, 128, (8, 64)).astype(np.int8)}
    nodes = [
        ("Cast", "x", "f", {"to": 1}),
        ("QuantizeLinear", "f s z", "q", {}),
        ("DequantizeLinear", "q s z", "d", {}),
    ]
    nodes += [("DequantizeLinear", "w s z", "v", {}), ("Gemm", "d v", "y", {"transB": 1})]
    model, feeds = Small(tuple(nodes), constants), {"x": rng.integers(0, 100, (4, 64)).astype(np.uint8)}
    expected = model.ort(feeds, TensorProto.FLOAT, "disabled")
    np.testing.assert_array_equal(model.openvino(feeds, TensorProto.FLOAT, **OPENVINO_EXACT), expected)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    return not np.array_equal(model.openvino(feeds, TensorProto.FLOAT, **hints), expected)


def openvino_channels() -> bool:
    """OpenVINO does not read a QLinearConv whose weights have a scale per channel."""
    constants = {"s": np.float32(1), "z": np.uint8(0), "w": np.ones((4, 3, 1, 1), np.int8)}
    constants |= {"v": np.ones(4, np.float32), "i": np.zeros(4, np.int8)}
    model = Small((("QLinearConv", "x s z w v i s z", "y", {}),), constants, (18, 8))
    return refused(lambda: model.openvino({"x": np.zeros((1, 3, 2, 2), np.uint8)}, TensorProto.UINT8))


def openvino_signal_stack() -> bool:
    """OpenVINO gives the thread that compiles a model another stack for signals, and frees it with the model."""
    openvino = pytest.importorskip("openvino", reason="needs pip install 'edgeq[openvino]'")
    core, model = openvino.Core(), Small((("Relu", "x", "y", {}),), {})
    read = core.read_model(model.bytes({"x": np.zeros((1, 2), np.float32)}, TensorProto.FLOAT))
    with kept_signal_stack():
        before, compiled, after = exchanged(), core.compile_model(read, "CPU"), exchanged()
        del compiled
    return before is not None and after is not None and before.pointer != after.pointer


# the mistake -> whose it is, the version in which it was last seen, and what can go when it is gone
GUARDS: dict[Callable[[], bool], tuple[str, str, str]] = {
    new_ir_version: ("onnxruntime", "1.31.1", "explicit IR versions in dialects/writer.py and qonnx_engine.py"),
    varint_tensors: ("onnx", "1.23.2", "the rule that tensors come from numpy_helper.from_array"),
    int2_weights_behind_dequantize: ("onnxruntime", "1.31.1", "the Cast behind INT2 weights in dialects/writer.py"),
    int64_max: ("onnxruntime", "1.31.1", "int32 alone in dialects/proof.py"),
    int64_sum: ("onnxruntime", "1.31.1", "words below 2^52 in dialects/writer.py"),
    int32_max_pool: ("onnxruntime", "1.31.1", "pooling on uint8 in dialects/proof.py"),
    openvino_int32_division: ("openvino", "2026.4.1", "limits before the division in dialects/proof.py"),
    openvino_unrounded_branch: ("openvino", "2026.4.1", "LP_TRANSFORMS_MODE in engines.py"),
    openvino_dynamic_quantization: ("openvino", "2026.4.1", "EXECUTION_MODE_HINT in engines.py, if bfloat16 ends too"),
    openvino_channels: ("openvino", "2026.4.1", "the note in docs/dialects.md that OpenVINO does not read `ort` files"),
    openvino_signal_stack: ("openvino", "2026.4.1", "signalstack.py"),
}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split(".")[:3])


def oldest(package: str) -> str:
    """The lowest version that edgeq takes."""
    asked = [re.match(rf"{package}>=([\d.]+)", line) for line in metadata.requires("edgeq") or ()]
    return next(found[1] for found in asked if found)


@pytest.mark.parametrize("guard", GUARDS, ids=[guard.__name__ for guard in GUARDS])
def test_the_engine_still_makes_the_mistake(guard: Callable[[], bool]) -> None:
    package, seen, remedy = GUARDS[guard]
    here = pytest.importorskip(package, reason=f"needs pip install 'edgeq[{package}]'").__version__
    if not guard():
        if numbers(here) < numbers(seen):
            pytest.skip(f"{package} {here} is older than the one that was looked at, {seen}")
        if numbers(oldest(package)) <= numbers(seen):
            pytest.skip(f"{package} {here} does not make this mistake any more, {seen} does and is still taken")
        pytest.fail(f"no {package} that is still taken makes this mistake: {remedy} can go")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", BITS)
def test_the_dialects_keep_clear_of_them(graphs, target: str, bits: int) -> None:
    model = build(graphs.resnet(bits, width=4, blocks=1, size=8), target)
    opset = next(item.version for item in model.opset_import if item.domain == "")
    assert opset <= 25 and model.ir_version <= 13  # what the oldest supported ONNX Runtime reads
    constants = {value.name: value for value in model.graph.initializer}
    for value in constants.values():
        assert value.raw_data or not np.prod(value.dims), value.name  # no varints
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.output]}
    kinds |= {name: value.data_type for name, value in constants.items()}
    for node in model.graph.node:
        given = {kinds.get(name) for name in node.input}
        assert not (node.op_type in ("Max", "Min", "Clip") and TensorProto.INT64 in given), node.name
        assert not (node.op_type == "MaxPool" and TensorProto.INT32 in given), node.name
        assert not (node.op_type == "DequantizeLinear" and TensorProto.INT2 in given), node.name


def test_the_versions_at_hand_are_supported() -> None:
    assert numbers(onnx.__version__) >= (1, 20) and numbers(onnxruntime.__version__) >= (1, 24)
