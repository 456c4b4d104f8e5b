"""Against a stand-in for TensorRT: the calls and their order, not TensorRT itself, which needs a GPU."""

import ctypes
import enum
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest

from edgeq.errors import InputError, MissingExtra
from edgeq.export.compare import compare
from edgeq.export.dialects import build
from edgeq.export.engines import session
from edgeq.export.trt_engine import TrtRunner, build_engine, load_tensorrt, trtexec


class Network:
    def __init__(self, flags: int) -> None:
        self.flags, self.model = flags, b""

    def get_input(self, index: int) -> SimpleNamespace:
        value = onnx.load_from_string(self.model).graph.input[index]
        return SimpleNamespace(name=value.name, shape=[d.dim_value or -1 for d in value.type.tensor_type.shape.dim])


class Parser:
    def __init__(self, network: Network, _: object) -> None:
        self.network, self.num_errors = network, 0

    def parse(self, model: bytes) -> bool:
        self.network.model = model
        refused = any(node.op_type == "Erf" for node in onnx.load_from_string(model).graph.node)
        self.num_errors = int(refused)
        return not refused

    def get_error(self, _: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: "no importer for Erf")


class Config:
    def __init__(self) -> None:
        self.cleared, self.profiles, self.profiling_verbosity = [], [], None
        self.clear_flag, self.add_optimization_profile = self.cleared.append, self.profiles.append


class Profile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.name, self.shapes = name, shapes


class Builder:
    log: list["Builder"] = []  # noqa: RUF012  for the assertions

    def __init__(self, _: object) -> None:
        self.log.append(self)

    def create_network(self, flags: int) -> Network:
        self.network = Network(flags)
        return self.network

    def create_builder_config(self) -> Config:
        self.config = Config()
        return self.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        assert config.profiles[0].shapes[0][0] == 1 and config.cleared == ["tf32"]
        return network.model


class Context:
    """Runs ONNX Runtime on the memory that it is given addresses of."""

    def __init__(self, plan: bytes) -> None:
        self.session, self.addresses = session(plan), {}
        self.shape: tuple[int, ...] = (1,)
        self.set_tensor_address = self.addresses.__setitem__

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = next(value for value in self.session.get_outputs() if value.name == name)
        return (self.shape[0], *value.shape[1:])

    def execute_async_v3(self, _: int) -> bool:
        images = np.frombuffer(ctypes.string_at(self.addresses["image"], int(np.prod(self.shape))), np.uint8)
        names = [value.name for value in self.session.get_outputs()]
        for name, value in zip(names, self.session.run(names, {"image": images.reshape(self.shape)}), strict=True):
            array = np.ascontiguousarray(value)
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)
        return True


class Engine:
    def __init__(self, plan: bytes) -> None:
        graph = onnx.load_from_string(plan).graph
        self.names = [value.name for value in [*graph.input, *graph.output]]
        self.num_io_tensors, self.get_tensor_name = len(self.names), self.names.__getitem__
        self.plan = plan

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name: str) -> type:
        return np.uint8 if name == "image" else np.int32

    def create_execution_context(self) -> Context:
        return Context(self.plan)

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": ["stem"]}))


@pytest.fixture(params=["10.16.1.11", "11.4.0.106"])
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("tensorrt")
    members = {"STRONGLY_TYPED": 1} if request.param.startswith("10") else {"OTHER": 0}
    module.__dict__.update(
        __version__=request.param,
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        Builder=Builder,
        OnnxParser=Parser,
        BuilderFlag=SimpleNamespace(TF32="tf32"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        NetworkDefinitionCreationFlag=enum.IntEnum("Flag", members),
        TensorIOMode=SimpleNamespace(OUTPUT="out"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: Engine(plan) if plan else None),
        nptype=lambda kind: kind,
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    Builder.log.clear()
    return module


def test_an_engine_is_built_strongly_typed_and_run(graphs, trt: ModuleType) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    plan = build_engine(build(graph, "trt").SerializeToString(), max_batch=8)
    assert Builder.log[0].network.flags == (2 if vars(trt)["__version__"].startswith("10") else 0)
    assert Builder.log[0].config.profiles[0].shapes == ((1, 3, 8, 8), (1, 3, 8, 8), (8, 3, 8, 8))
    runner, images = TrtRunner(plan, device="cpu"), graphs.images(graph, 3)
    np.testing.assert_array_equal(runner.run(images)["logits"], graph.run(images))
    assert runner.layers() == ["stem"]


def test_a_refused_model_and_a_foreign_engine_are_mistakes(graphs, trt: ModuleType) -> None:
    model = build(graphs.resnet(4, width=4, blocks=1, size=8), "trt")
    model.graph.node[0].op_type = "Erf"
    with pytest.raises(InputError, match="no importer for Erf"):
        build_engine(model.SerializeToString())
    with pytest.raises(InputError, match="build it again"):
        TrtRunner(b"")


def test_other_versions_are_refused(trt: ModuleType) -> None:
    vars(trt)["__version__"] = "8.6.1"
    with pytest.raises(InputError, match=r"TensorRT 10\.x or 11\.x, got 8\.6\.1"):
        load_tensorrt()


def test_without_tensorrt_the_extra_is_named(graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=r"edgeq\[tensorrt\]"):
        load_tensorrt()
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    model = build(graph, "trt").SerializeToString()
    runs = compare(graph, model, graphs.images(graph, 1), engines=("tensorrt",), target="trt")
    assert [run.engine for run in runs] == ["tensorrt:edges", "tensorrt:logits"]
    assert all("edgeq[tensorrt]" in run.error and not run.exact for run in runs)


def test_the_command_for_trtexec(graphs) -> None:
    command = trtexec(graphs.resnet(8, width=4, blocks=1, size=8), max_batch=16)
    assert command.startswith("trtexec --onnx=model.onnx --stronglyTyped --noTF32 ")
    assert "--minShapes=image:1x3x8x8 --optShapes=image:1x3x8x8 --maxShapes=image:16x3x8x8" in command
