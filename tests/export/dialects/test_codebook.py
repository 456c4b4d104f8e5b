"""The nearest codeword, and networks that draw an image: every dialect, every engine at hand, every code."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from edgeq.errors import InputError
from edgeq.export.audit import audit
from edgeq.export.compare import compare
from edgeq.export.dialects import TARGETS, build
from edgeq.export.executor import TorchExecutor
from edgeq.export.graph import INPUT, Codebook, Conv, IntegerGraph
from edgeq.export.graphfile import from_bytes, to_bytes
from edgeq.export.reference import run, step
from edgeq.export.verify import certify, needs_vnni, prove
from edgeq.integer import runner


def codebook(b, source: str, codes: int, top: int, *, spread: int) -> str:
    """Add codewords of -top...top; biases are those of the squares, give or take `spread`."""
    channels, *plane = b.edges[source].shape
    weight = b.rng.integers(-top, top + 1, (codes, channels)).astype(np.int8)
    bias = -(weight.astype(np.int32) ** 2).sum(1) // 2 + b.rng.integers(-spread, spread + 1, codes)
    return b.put(Codebook("book", source, weight, bias.astype(np.int32)), -128, 127, (channels, *plane))


def drawing(b, source: str) -> IntegerGraph:
    """Close with an image, 8 bits with sign."""
    b.conv(source, 3, padding=(1, 1, 1, 1), lo=-128, hi=127, name="last")
    return IntegerGraph("test", 8, tuple(b.nodes), dict(b.edges))


def searching(graphs, kind: str) -> IntegerGraph:
    """Search among codewords with ties everywhere, at the ends of all ranges, or with scores beyond 24 bits."""
    b = graphs.Builder((3, 6, 5))
    if kind == "ties":
        return drawing(b, codebook(b, b.conv(INPUT, 3, (1, 1), lo=-1, hi=1), 11, 1, spread=0))
    x = codebook(b, b.conv(INPUT, 4, (1, 1), lo=-128, hi=127), 9, 127, spread=0)
    graph = drawing(b, x)
    if kind == "wide":
        *before, book, last = graph.nodes
        assert isinstance(book, Codebook)
        bias = (book.bias + (1 << 29)).astype(np.int32)
        return replace(graph, nodes=(*before, replace(book, bias=bias), last))
    return graph


def inputs(graphs, graph: IntegerGraph) -> np.ndarray:
    flat = [np.full((1, *graph.input_shape), value, np.uint8) for value in (0, 127, 128, 255)]
    return np.concatenate([graphs.images(graph, 3), *flat])


@pytest.mark.parametrize("kind", ["ties", "ends"])
def test_the_lowest_of_the_nearest_is_chosen_in_every_dialect(graphs, kind: str) -> None:
    graph = searching(graphs, kind)
    images = inputs(graphs, graph)
    assert np.array_equal(from_bytes(*to_bytes(graph)).run(images), graph.run(images))
    for target in TARGETS:
        data = build(graph, target).SerializeToString()
        assert all(proof.exact for proof in prove(graph, data, target) if proof.layer == "book")
        engines = ("torch", "onnx.reference", "onnxruntime", *(["qonnx"] if target == "qonnx" else []))
        for found in compare(graph, data, images, engines=engines, slow_images=2, target=target):
            assert found.exact, (target, found.engine, found.first, found.error)


def test_ties_are_what_the_engines_were_given(graphs) -> None:
    graph = searching(graphs, "ties")
    book = next(node for node in graph.nodes if isinstance(node, Codebook))
    codes = run(graph, inputs(graphs, graph))
    x = codes[book.input]
    scores = np.einsum("kd,ndhw->nkhw", book.weight.astype(int), x) + book.bias[:, None, None]
    best = scores == scores.max(1, keepdims=True)
    first, last = best.argmax(1), len(book.weight) - 1 - best[:, ::-1].argmax(1)
    assert (book.weight[first] != book.weight[last]).any(-1).mean() > 0.2
    assert np.array_equal(codes["book"], book.weight[first].transpose(0, 3, 1, 2))
    nearest = ((x.transpose(0, 2, 3, 1)[..., None, :] - book.weight) ** 2).sum(-1).min(-1)
    chosen = ((x - codes["book"]) ** 2).sum(1)
    assert (chosen - nearest).max() <= 1  # halves of odd squares were rounded down


def test_an_image_comes_out_as_bytes(graphs) -> None:
    graph = searching(graphs, "ends")
    images = inputs(graphs, graph)
    assert graph.draws and graph.run(images).min() >= -128
    for target in ("ort", "proof", "trt"):
        drawn = runner(build(graph, target).SerializeToString())(images)
        assert drawn.dtype == np.uint8 and np.array_equal(drawn.astype(int) - 128, graph.run(images)), target
    assert audit(build(graph, "ort").SerializeToString()).integer
    assert "book" in needs_vnni(graph)


def test_scores_beyond_24_bits_are_left_to_integers(graphs) -> None:
    graph = searching(graphs, "wide")
    images = inputs(graphs, graph)
    for target in ("trt", "qonnx"):
        with pytest.raises(InputError, match="scores of codewords that float32 holds at 'book', got up to 5368"):
            build(graph, target)
    for target in ("ort", "proof"):
        data = build(graph, target).SerializeToString()
        assert all(found.exact for found in compare(graph, data, images, target=target))
        assert all(proof.exact for proof in prove(graph, data, target) if proof.layer == "book")
    fast = TorchExecutor(graph).edges(torch.from_numpy(images))
    assert np.array_equal(fast["book"].numpy(), run(graph, images)["book"])


@pytest.mark.parametrize("target", ["ort", "proof", "qonnx"])
def test_an_engine_that_takes_the_last_of_equals_is_found(graphs, target: str) -> None:
    graph = searching(graphs, "ties")
    model = build(graph, target)
    chooser = next(node for node in model.graph.node if node.op_type == "ArgMax")
    chooser.attribute.append(helper.make_attribute("select_last_index", 1))
    certificate = certify(graph, model.SerializeToString(), target=target, engines=("onnxruntime",), quick=True)
    assert certificate.first_divergence == "book"
    (found,) = (proof for proof in certificate.proofs if proof.claim == "codewords")
    assert not found.exact and "codeword 0 among equals gives other codes" in found.detail


@pytest.mark.parametrize("target", TARGETS)
def test_a_changed_codeword_is_found(graphs, target: str) -> None:
    graph = searching(graphs, "ends")
    model = build(graph, target)
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    constant = next(value for value in model.graph.initializer if value.name == gather.input[0])
    words = numpy_helper.to_array(constant).copy()
    words[4, 1] += 1
    constant.CopyFrom(numpy_helper.from_array(words, constant.name))
    bad = {proof.claim for proof in prove(graph, model.SerializeToString(), target) if not proof.exact}
    assert {"codewords", "translation"} <= bad


def test_an_image_is_a_convolution_of_signed_bytes(graphs) -> None:
    b = graphs.Builder((3, 6, 5))
    b.conv(INPUT, 3, lo=0, hi=127)
    for target in TARGETS:
        with pytest.raises(InputError, match="a last layer that gives int32 sums or, as a Conv, an image"):
            build(IntegerGraph("test", 8, tuple(b.nodes), dict(b.edges)), target)
    named = searching(graphs, "ends")
    last = named.nodes[-1]
    assert isinstance(last, Conv)
    renamed = replace(named, nodes=(*named.nodes[:-1], replace(last, name="drawn")), edges={**named.edges})
    renamed.edges["drawn"] = named.edges["last"]  # type: ignore[index]
    with pytest.raises(InputError, match="the name 'drawn' for the output alone"):
        build(renamed, "ort")


def test_scores_are_a_convolution(graphs) -> None:
    book = Codebook("book", INPUT, np.array([[1, 0], [0, 1]], np.int8), np.array([0, 0], np.int32))
    x = np.array([[[[3, 1, 2]], [[1, 3, 2]]]], np.int32)
    assert step(book, [x])[0, :, 0].T.tolist() == [[1, 0], [0, 1], [1, 0]]
