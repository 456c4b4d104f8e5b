"""The proof that a model computes its integer graph, and the runs that would show if the proof had a hole.

For every input, by argument:
    inequality   m * |acc| <= 2^24 wherever the output does not saturate, per channel: then float32 requantization
                 is the integer rule (`multiplier.py`)
    int32        no accumulator leaves 32 bits
For every input, by exhaustion, in the engine itself (`sweep.py`, `cuts.py`):
    requantizer  accumulators beside every threshold of every channel, with the model's own scales
    table        all codes of each Rescale and Table, all pairs of codes of each Add and Mul
    codewords    each codeword with the scores that choose it, alone or the first of equals (`codewords.py`)
    bias         every float bias of the `trt` dialect is the integer one
    sums         no float32 sum of the `qonnx` dialect passes 2^24
    lint         the `trt` dialect keeps TensorRT's rules (`dialects/trt_lint.py`)
On random, extreme and given images: every edge of every engine against the interpreter, code by code (`engines.py`);
ONNX Runtime and onnx.reference get the sums of a `trt` model's wide layers in integers (`exactsums.py`).
"""

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from edgeq import __version__
from edgeq.errors import InputError

from .certificate import Certificate, Proof, Run
from .codewords import codebook_proofs
from .compare import codes_per_image, compare
from .cuts import sweep_cuts
from .dialects.trt_lint import lint
from .engines import ENGINES
from .exactsums import exact_sums, ordered
from .graph import AvgPool, Codebook, Conv, IntegerGraph, Linear, Mul, PlaneSum, reach
from .modelfile import parsed
from .multiplier import FLOAT32_EXACT, requant_is_exact, saturation
from .sweep import sweep
from .translation import translated, unpacked

if TYPE_CHECKING:
    from .artefact import Artefact

Images = UInt8[np.ndarray, "batch channels height width"]
INT32_LIMIT = 1 << 31
RANDOM = {True: 6, False: 50}  # random images of the quick and of the thorough form, at most
CODES = {True: 4_000_000, False: 20_000_000}  # codes on random images, which makes them fewer for large images
GIVEN = {True: 4, False: None}  # given images that are used
SLOW = {True: 1, False: 8}  # images for onnx.reference, which is slower than the rest


def verify(
    artefact: "str | os.PathLike[str] | Artefact",
    *,
    inputs: Images | None = None,
    engines: tuple[str, ...] = ENGINES,
) -> Certificate:
    """Check an artefact's hashes, prove its model again, and run every engine.

    Args:
        artefact: The folder, or what `load` made of it.
        inputs: Real images to compare on, besides random and extreme ones.
        engines: Which of `torch`, `onnx.reference`, `onnxruntime` and, where it is installed, `openvino` to run.

    Returns:
        The certificate; `exact` is the verdict and `failures()` names the layers.

    Raises:
        InputError: The artefact is damaged or the images do not fit.
    """
    from .artefact import Artefact, load

    loaded = artefact if isinstance(artefact, Artefact) else load(artefact)
    target = str(loaded.manifest["target"])
    return certify(loaded.graph, loaded.model, target=target, inputs=inputs, engines=engines, quick=False)


def certify(
    graph: IntegerGraph,
    model: bytes,
    *,
    target: str = "ort",
    inputs: Images | None = None,
    engines: tuple[str, ...] = ENGINES,
    quick: bool = False,
) -> Certificate:
    """Return the certificate of a model for a graph; `quick` runs fewer images and leaves out the slow engine."""
    proofs = prove(graph, model, target)  # what is no model at all ends here
    kinds = trial_images(graph, inputs, quick=quick)
    images = np.concatenate(list(kinds.values()))
    runs: tuple[Run, ...] = ()
    for summed in (True, False):  # these add in float32, and get the sums of wide layers in integers
        names = tuple(name for name in engines if (name in ENGINES) == summed)
        given = exact_sums(graph, model) if summed and target == "trt" else model
        runs += compare(graph, given, images, engines=names, slow_images=SLOW[quick], target=target) if names else ()
    return Certificate(
        name=graph.name,
        bits=graph.bits,
        target=target,
        quick=quick,
        model_sha256=hashlib.sha256(model).hexdigest(),
        inputs={kind: len(images) for kind, images in kinds.items()},
        proofs=proofs,
        runs=runs,
        needs_vnni=needs_vnni(graph) if target == "ort" else (),
        ordered=ordered(graph) if target == "trt" else (),
        versions=_versions(),
    )


def prove(graph: IntegerGraph, model: bytes, target: str = "ort") -> tuple[Proof, ...]:
    """Return every statement about every layer, in topological order of the layers."""
    read = parsed(model)
    swept = sweep(graph, read) + unpacked(graph, read) if target == "ort" else sweep_cuts(graph, read, target)
    swept = translated(graph, read, target) + swept
    proofs: list[Proof] = []
    for node in graph.nodes:
        if isinstance(node, Conv | Linear | AvgPool | Mul):
            proofs += _argued(graph, node)
        if isinstance(node, PlaneSum):
            proofs.append(_plane_sum(graph, node, target))
        if isinstance(node, Codebook):
            proofs += codebook_proofs(graph, node, read, target)
        proofs += [proof for proof in swept if proof.layer == node.name]
    proofs += [proof for proof in swept if proof.layer == "model"]
    if target == "trt":
        findings = lint(read)
        proofs.append(
            Proof("model", "lint", len(read.graph.node), not findings, "".join(f.message for f in findings[:1]))
        )
    return tuple(proofs)


def _plane_sum(graph: IntegerGraph, node: PlaneSum, target: str) -> Proof:
    """Show that sums over the plane fit into their tensor: int32, or float32 in the dialects that add in it."""
    edge = graph.edges[node.input]
    largest = edge.reach * int(np.prod(edge.shape[1:]))
    fits = largest <= FLOAT32_EXACT if target in ("trt", "qonnx") else largest < INT32_LIMIT
    return Proof(node.name, "int32", edge.shape[0], fits, "" if fits else f"sums reach {largest}")


def _argued(graph: IntegerGraph, node: Conv | Linear | AvgPool | Mul) -> list[Proof]:
    edge, rq = graph.edges[node.inputs[0]], node.requant
    if isinstance(node, AvgPool):
        height, width = node.kernel or edge.shape[1:]
        bound = np.full(len(node.requant.m), edge.reach * height * width, np.int64)
    elif isinstance(node, Mul):
        bound = np.full(1, edge.reach * graph.edges[node.b].reach, np.int64)
    else:
        bound = reach(node, edge)
    largest = int(bound.max())
    fits = largest < INT32_LIMIT
    proofs = [Proof(node.name, "int32", len(bound), fits, "" if fits else f"accumulators reach {largest}")]
    if rq is None:
        return proofs
    exact = requant_is_exact(rq, bound)
    detail = ""
    if not exact.all():
        channel = int(np.argmin(exact))
        acc = min(saturation(int(rq.m[channel]), rq.n, rq.lo, rq.hi) - 1, int(bound[channel]))
        detail = (
            f"channel {channel}: multiplier {rq.m[channel]} * 2^-{rq.n} times accumulator {acc} is above 2^24 "
            f"({int((~exact).sum())} of {len(exact)} channels)"
        )
    return [Proof(node.name, "inequality", len(exact), bool(exact.all()), detail), *proofs]


def needs_vnni(graph: IntegerGraph) -> tuple[str, ...]:
    """Return the layers whose neighbouring products can exceed 16 bits.

    ONNX Runtime multiplies uint8 by int8 with `vpmaddubsw` on x86 processors that have AVX2 but neither VNNI nor AMX;
    it adds two products in 16 bits and saturates.
    """
    found = []
    for node in graph.nodes:
        if isinstance(node, Conv | Linear | Codebook):
            edge = graph.edges[node.input]
            raw = edge.hi + max(0, -edge.lo)  # largest byte on the edge
            if 2 * raw * int(np.abs(node.weight.astype(np.int32)).max(initial=0)) >= 1 << 15:
                found.append(node.name)
    return tuple(found)


def trial_images(graph: IntegerGraph, given: Images | None, *, quick: bool) -> dict[str, np.ndarray]:
    """Return the images by kind: random (white and smooth), extreme, and the given ones."""
    shape = graph.input_shape
    rng = np.random.default_rng(0)
    count = max(2, min(RANDOM[quick], CODES[quick] // codes_per_image(graph)))
    white = rng.integers(0, 256, (count // 2, *shape), np.uint8)
    coarse = rng.integers(0, 256, (count - count // 2, shape[0], -(-shape[1] // 8), -(-shape[2] // 8)), np.uint8)
    smooth = coarse.repeat(8, 2).repeat(8, 3)[:, :, : shape[1], : shape[2]]
    board = (np.indices(shape).sum(0) % 2 * 255).astype(np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, shape[2]).astype(np.uint8), shape)
    flat = [np.full(shape, value, np.uint8) for value in (0, 128, 255)]
    kinds = {"random": np.concatenate([white, smooth]), "extreme": np.stack([*flat, board, 255 - board, ramp])}
    if given is not None:
        if given.dtype != np.uint8 or given.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise InputError(
                f"expected uint8 images of shape (batch, {expected}), got {given.dtype} {given.shape}; convert them"
            )
        kinds["given"] = given[: GIVEN[quick]]
    return kinds


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import torch

    packages = {"onnx": onnx, "onnxruntime": onnxruntime, "torch": torch, "numpy": np}
    return {"edgeq": __version__, **{name: package.__version__ for name, package in packages.items()}}
