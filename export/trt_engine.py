"""Build, run and time a TensorRT engine of a `trt` artefact: for a machine with an NVIDIA GPU and TensorRT 10 or 11.

TensorRT is imported where it is used. Its 10.x wants the flag STRONGLY_TYPED, 11.x ignores or lacks it; both parse the
same file. Engines are bound to the GPU and the version that built them: keep the ONNX file, not the engine. Memory is
PyTorch's. This module was written from NVIDIA's documentation and tested against a stand-in for the package, never on
a GPU: `verify(artefact, engines=("tensorrt",))` is the test to run there.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeq.errors import InputError, require

from .graph import INPUT, IntegerGraph

if TYPE_CHECKING:
    import torch

MAJORS = (10, 11)
MAX_BATCH = 64
WARM_UP, RUNS = 50, 500


def trtexec(graph: IntegerGraph, model: str = "model.onnx", *, max_batch: int = MAX_BATCH) -> str:
    """Return the command that builds an engine and times it at batch 1, with the clocks' noise shown by percentiles."""
    dims = "x".join(map(str, graph.input_shape))
    shapes = " ".join(f"--{kind}Shapes={INPUT}:{n}x{dims}" for kind, n in (("min", 1), ("opt", 1), ("max", max_batch)))
    engine = "--saveEngine=model.plan --profilingVerbosity=detailed --exportLayerInfo=layers.json"
    timing = "--warmUp=500 --duration=10 --iterations=1000 --useCudaGraph --useSpinWait --percentile=50,90,99"
    return f"trtexec --onnx={model} --stronglyTyped --noTF32 {shapes} --shapes={INPUT}:1x{dims} {engine} {timing}"


def load_tensorrt() -> ModuleType:
    """Import TensorRT.

    Raises:
        MissingExtra: It is not installed.
        InputError: It is neither 10.x nor 11.x.
    """
    trt = require("tensorrt", "tensorrt")
    if int(trt.__version__.split(".")[0]) not in MAJORS:
        wanted = " or ".join(f"{major}.x" for major in MAJORS)
        raise InputError(f"expected TensorRT {wanted}, got {trt.__version__}; install another version")
    return trt


def build_engine(model: bytes, *, max_batch: int = MAX_BATCH) -> bytes:
    """Return a serialized engine of a `trt` model, for the GPU of this machine.

    Raises:
        InputError: TensorRT refuses the model; the message has its first complaint.
    """
    trt = load_tensorrt()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        complaint = str(parser.get_error(0).desc()) if parser.num_errors else "no reason"
        raise InputError(f"expected a model that TensorRT {trt.__version__} parses, got '{complaint}'; lint it")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # a layer left in float must stay exact
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    dims = tuple(image.shape)[1:]
    profile.set_shape(image.name, (1, *dims), (1, *dims), (max_batch, *dims))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise InputError(f"expected TensorRT {trt.__version__} to build an engine, got none; run trtexec for its log")
    return bytes(plan)


def _network_flags(trt: ModuleType) -> int:
    """10.x: ask for strong typing. 11.x: there is nothing else, and the flag may be gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


class TrtRunner:
    """A deserialized engine with its own stream.

    Args:
        plan: What `build_engine` returned.
        device: Where PyTorch keeps the tensors.
    """

    def __init__(self, plan: bytes, *, device: str = "cuda") -> None:
        trt = load_tensorrt()
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise InputError(
                f"expected an engine of TensorRT {trt.__version__} and this GPU, got another; build it again"
            )
        self.context = self.engine.create_execution_context()
        self.device = device
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        self.outputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        self._dtypes = {name: np.dtype(trt.nptype(self.engine.get_tensor_dtype(name))) for name in self.outputs}

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return every output for a batch of uint8 images."""
        import torch

        held = self.bind(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))
        self.launch()
        self.wait()
        return {name: held[name].cpu().numpy() for name in self.outputs}

    def bind(self, images: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Set shapes and addresses, and return the tensors, which must outlive the runs."""
        import torch

        held = {INPUT: images}
        self.context.set_input_shape(INPUT, tuple(images.shape))
        for name in self.outputs:
            dtype = getattr(torch, self._dtypes[name].name)
            held[name] = torch.empty(tuple(self.context.get_tensor_shape(name)), dtype=dtype, device=self.device)
        for name, tensor in held.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        return held

    def launch(self) -> None:
        """Enqueue one run on PyTorch's stream."""
        import torch

        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0
        if not self.context.execute_async_v3(stream):
            raise RuntimeError("TensorRT did not enqueue the run")

    def wait(self) -> None:
        """Wait for all runs."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def layers(self) -> list[Any]:  # Any: JSON of TensorRT's own
        """Return what each layer became, from the engine's inspector."""
        import json

        trt = load_tensorrt()
        inspector = self.engine.create_engine_inspector()
        inspector.execution_context = self.context  # without it there are no shapes where the batch is free
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return json.loads(text).get("Layers", [])


def time_engine(runner: TrtRunner, images: np.ndarray, *, runs: int = RUNS) -> dict[str, float]:
    """Return the median, 90th and 99th percentile of the GPU's time per batch, in milliseconds, by CUDA events."""
    import torch

    held = runner.bind(torch.from_numpy(np.ascontiguousarray(images)).to(runner.device))
    for _ in range(WARM_UP):
        runner.launch()
    times = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        runner.launch()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    del held  # its memory was in use until here
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
