import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeq.errors import InputError
from edgeq.export import IntegerGraph, load, save, verify
from edgeq.export.certificate import NotExact
from edgeq.export.dialects import build, writer
from edgeq.export.graph import INPUT, Add, Conv, Linear, reach
from edgeq.export.multiplier import Requant, requantize
from edgeq.export.sweep import thresholds
from edgeq.export.verify import certify, needs_vnni, prove


@pytest.fixture(scope="module")
def graph(graphs) -> IntegerGraph:
    return graphs.resnet(4, width=4, blocks=1, size=8)


@pytest.fixture
def artefact(graph: IntegerGraph, tmp_path: Path) -> Path:
    return save(graph, path=tmp_path / "art")


def operator(model: onnx.ModelProto, layer: str) -> onnx.NodeProto:
    """Return the node that computes a layer, before its clamp."""
    produced = {node.output[0]: node for node in model.graph.node}
    return produced.get(f"{layer}:raw") or produced[layer]


def change(model: onnx.ModelProto, layer: str, position: int, new: np.ndarray | np.float32) -> None:
    """Give one operator another constant, and leave shared ones alone."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(new), f"changed:{layer}"))
    operator(model, layer).input[position] = f"changed:{layer}"


def constant(model: onnx.ModelProto, layer: str, position: int) -> np.ndarray:
    name = operator(model, layer).input[position]
    return numpy_helper.to_array(next(value for value in model.graph.initializer if value.name == name)).copy()


def rewrite(artefact: Path, model: onnx.ModelProto, *, fix_hash: bool) -> None:
    data = model.SerializeToString()
    (artefact / "model.onnx").write_bytes(data)
    if fix_hash:
        manifest = json.loads((artefact / "manifest.json").read_text())
        manifest["files"]["model.onnx"]["sha256"] = hashlib.sha256(data).hexdigest()
        (artefact / "manifest.json").write_text(json.dumps(manifest))


def test_an_artefact_verifies(graphs, graph: IntegerGraph, artefact: Path) -> None:
    certificate = verify(artefact, inputs=graphs.images(graph, 5))
    assert certificate.exact and certificate.require_exact() is certificate
    assert certificate.inputs == {"random": 50, "extreme": 6, "given": 5} and not certificate.quick
    assert certificate.mismatches == 0 and certificate.first_divergence is None and not certificate.failures()
    assert {run.engine: run.images for run in certificate.runs}["onnx.reference"] == 8
    per_image = sum(int(np.prod(edge.shape)) for name, edge in graph.edges.items() if name != INPUT)
    assert {run.engine: run.codes for run in certificate.runs}["onnxruntime:all:edges"] == 61 * per_image
    assert json.dumps(certificate.as_dict())
    assert verify(load(artefact), engines=("torch",)).exact


@pytest.mark.parametrize("layer", ["stem", "layer2.0.conv1", "layer3.0.down"])
def test_one_changed_multiplier_is_found_and_its_layer_named(artefact: Path, layer: str) -> None:
    model = onnx.load(artefact / "model.onnx")
    scale = constant(model, layer, 4)
    scale[1] *= np.float32(1.02)
    change(model, layer, 4, scale)
    rewrite(artefact, model, fix_hash=False)
    with pytest.raises(InputError, match=r"model\.onnx with SHA-256"):
        verify(artefact)
    rewrite(artefact, model, fix_hash=True)
    certificate = verify(artefact)
    assert not certificate.exact and certificate.first_divergence == layer
    swept = [proof for proof in certificate.proofs if not proof.exact]
    assert [(proof.layer, proof.claim) for proof in swept] == [(layer, "translation"), (layer, "requantizer")]
    assert swept[1].detail.startswith("channel 1: accumulator")
    differing = {run.engine: run.first.layer for run in certificate.runs if run.first}
    assert differing["onnx.reference"] == differing["onnxruntime:all:edges"] == layer
    assert "torch" not in differing  # it runs the graph, not the file
    with pytest.raises(NotExact, match=f"layer '{layer}'"):
        certificate.require_exact()


@pytest.mark.parametrize("layer", ["stem", "layer1.0.conv1", "layer2.0.conv2"])
def test_the_sweep_finds_what_trying_all_accumulators_finds(graph: IntegerGraph, layer: str) -> None:
    """Whatever the size of the change, the cases beside the thresholds decide for all accumulators."""
    node = next(node for node in graph.nodes if node.name == layer)
    assert isinstance(node, Conv) and node.requant is not None
    bound = reach(node, graph.edges[node.input])
    verdicts = set()
    for change_by in (1e-7, 3e-6, 1e-5, 1e-4, 1e-3):
        model = build(graph, "ort")
        scale = constant(model, layer, 4)
        scale[0] *= np.float32(1 - change_by)
        change(model, layer, 4, scale)
        acc = np.arange(-bound[0], bound[0] + 1)[None, None]
        engine = np.clip(np.rint(acc.astype(np.float32) * scale[0]), node.requant.lo, node.requant.hi)
        first = Requant(node.requant.m[:1], node.requant.n, node.requant.lo, node.requant.hi)
        same = np.array_equal(engine.astype(np.int32), requantize(acc, first))
        failed = [p for p in prove(graph, model.SerializeToString()) if not p.exact and p.claim != "translation"]
        assert [p.layer for p in failed] == ([] if same else [layer])
        verdicts.add(same)
    assert verdicts == {True, False}


def test_a_change_too_small_for_random_images_is_found(graph: IntegerGraph) -> None:
    model = build(graph, "ort")
    change(model, "stem", 4, constant(model, "stem", 4) * np.float32(1 - 2e-5))
    certificate = certify(graph, model.SerializeToString(), quick=True)
    assert certificate.mismatches == 0
    assert not certificate.exact and certificate.first_divergence == "stem"


@pytest.mark.parametrize(
    ("layer", "claim"), [("layer1.0.add", "table"), ("layer2.0.in", "table"), ("avg", "requantizer")]
)
def test_other_changed_scales_are_found(graph: IntegerGraph, layer: str, claim: str) -> None:
    layer = next(node.name for node in graph.nodes if node.name.startswith(layer))
    model = build(graph, "ort")
    change(model, layer, 1, constant(model, layer, 1) * np.float32(1.01))
    failed = [(p.layer, p.claim) for p in prove(graph, model.SerializeToString()) if not p.exact]
    assert failed == [(layer, "translation"), (layer, claim)]


def test_a_changed_weight_is_found_by_proof_and_runs(graph: IntegerGraph) -> None:
    model = build(graph, "ort")
    weight = constant(model, "stem", 3)
    weight[2, 1, 1, 1] += 9
    change(model, "stem", 3, weight)
    certificate = certify(graph, model.SerializeToString())
    failed = [(p.layer, p.claim) for p in certificate.proofs if not p.exact]
    assert failed == [("stem", "translation"), ("stem", "weights")] and certificate.first_divergence == "stem"


def test_changed_attributes_and_wires_are_found_by_the_translation(graph: IntegerGraph) -> None:
    strided = build(graph, "ort")
    next(a for n in strided.graph.node for a in n.attribute if a.name == "strides").ints[0] = 1
    swapped = build(graph, "ort")
    adder = next(n for n in swapped.graph.node if n.op_type == "QLinearAdd" and n.output[0].startswith("layer1.0.add"))
    adder.input[0], adder.input[3] = adder.input[3], adder.input[0]
    for model, layer in ((strided, "layer2"), (swapped, "layer1.0.add")):
        failed = [p for p in prove(graph, model.SerializeToString()) if not p.exact]
        assert failed[0].claim == "translation" and failed[0].layer.startswith(layer)
        assert "is not what the graph translates to" in failed[0].detail


@pytest.mark.parametrize("bits", [5, 4, 2])
def test_a_translator_that_packs_wrongly_is_found(graphs, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Both sides of the translation proof are wrong then; the unpacked weights are not the graph's."""
    right = writer._onnx_weight
    monkeypatch.setattr(writer, "_onnx_weight", lambda layer: np.ascontiguousarray(right(layer)[::-1]))
    graph = graphs.resnet(bits, width=4, blocks=1, size=8)
    failed = {p.claim for p in prove(graph, build(graph, "ort").SerializeToString()) if not p.exact}
    assert failed == {"weights"}


def test_without_a_run_nothing_is_certified(graph: IntegerGraph) -> None:
    certificate = certify(graph, build(graph, "ort").SerializeToString(), engines=())
    assert all(proof.exact for proof in certificate.proofs) and not certificate.exact
    with pytest.raises(NotExact, match="no engine ran"):
        certificate.require_exact()


def test_a_model_that_does_not_load_is_a_finding(graph: IntegerGraph) -> None:
    model = build(graph, "ort")
    model.ir_version = 99
    certificate = certify(graph, model.SerializeToString(), engines=("onnxruntime",))
    assert not certificate.exact and all("IR version" in run.error for run in certificate.runs)
    assert "did not run" in certificate.failures()[-1]


def test_a_multiplier_that_is_not_short_fails_the_inequality(graph: IntegerGraph) -> None:
    node = next(node for node in graph.nodes if node.name == "layer2.0.conv2")
    assert isinstance(node, Conv) and node.requant is not None
    m = node.requant.m << 7
    m[3] += 1
    requant = Requant(m, node.requant.n + 7, node.requant.lo, node.requant.hi)
    nodes = tuple(dataclasses.replace(n, requant=requant) if n is node else n for n in graph.nodes)
    long = dataclasses.replace(graph, nodes=nodes)
    failed = [proof for proof in prove(long, build(long, "ort").SerializeToString()) if not proof.exact]
    assert (failed[0].layer, failed[0].claim) == ("layer2.0.conv2", "inequality")
    assert "channel" in failed[0].detail and "above 2^24" in failed[0].detail


def test_a_long_adder_is_found(graph: IntegerGraph) -> None:
    nodes = tuple(
        dataclasses.replace(n, m_a=(n.m_a << 14) + 1, m_b=n.m_b << 14, n=28) if isinstance(n, Add) else n
        for n in graph.nodes
    )
    long = dataclasses.replace(graph, nodes=nodes)
    proofs = prove(long, build(long, "ort").SerializeToString())
    adders = [proof for proof in proofs if proof.claim == "table" and proof.layer.endswith("add")]
    assert len(adders) == 3 and any(not proof.exact for proof in adders)


def test_accumulators_beyond_int32_are_found(graphs) -> None:
    b = graphs.Builder()
    graph = b.graph(b.conv(INPUT, 4))
    node = graph.nodes[-1]
    assert isinstance(node, Linear)
    huge = dataclasses.replace(node, bias=np.full(5, (1 << 31) - 1, np.int32))
    proofs = prove(dataclasses.replace(graph, nodes=(*graph.nodes[:-1], huge)), build(graph, "ort").SerializeToString())
    assert [(p.layer, p.claim) for p in proofs if not p.exact][:2] == [("fc", "int32"), ("fc", "weights")]


def test_thresholds_hold_every_change_of_code() -> None:
    rq = Requant(np.array([77, 1000], np.int32), 12, -5, 9)
    acc = thresholds(rq, np.array([1 << 20, 1 << 20]))
    every = np.arange(-1000, 1000)
    codes = requantize(np.broadcast_to(every, (1, 2, 2000)), rq)[0]
    for channel in range(2):
        changes = every[1:][np.diff(codes[channel]) != 0]
        assert set(changes) | set(changes - 1) <= set(acc[channel].tolist())


def test_needs_vnni_names_layers_of_large_products(graphs) -> None:
    assert needs_vnni(graphs.resnet(8, width=4, blocks=1, size=8)) == ("stem",)


def test_other_engines_are_refused(artefact: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected engines of torch, onnx\.reference, onnxruntime, openvino, .*, got 'tvm'"
    ):
        verify(artefact, engines=("tvm",))


@pytest.mark.slow
@pytest.mark.ci_slow
@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_ten_million_codes(graphs, bits: int, tmp_path: Path) -> None:
    graph = graphs.resnet(bits)
    certificate = verify(save(graph, path=tmp_path / "art"))
    assert certificate.exact and certificate.codes > 80_000_000
    full = [run for run in certificate.runs if run.engine == "onnxruntime:all:edges"]
    assert full[0].codes > 10_000_000 and full[0].mismatches == 0
