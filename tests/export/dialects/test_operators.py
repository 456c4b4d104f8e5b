"""Moves, products, tables and sums over the plane: every dialect, every engine at hand, every code."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.export.audit import audit
from edgeq.export.compare import compare
from edgeq.export.dialects import TARGETS, build
from edgeq.export.graph import INPUT, Edge, Flatten, IntegerGraph, Move, Mul, Node, PlaneSum, Table
from edgeq.export.graphfile import from_bytes, to_bytes
from edgeq.export.moves import Geometry, Reshape, Slice, Spread, Transpose, Upsample
from edgeq.export.verify import prove


def put(b, kind: Callable[..., Node], source: str, lo: int, hi: int, shape: tuple[int, ...], *rest) -> str:
    return b.put(kind(b.name("node"), source, *rest), lo, hi, shape)


def move(b, source: str, *hows: Geometry) -> str:
    for how in hows:
        edge = b.edges[source]
        source = put(b, Move, source, edge.lo, edge.hi, how.result(edge.shape), how)
    return source


def mul(b, graphs, a: str, c: str, lo: int, hi: int, *, gain: float = 1.5) -> str:
    (x, y), reach = (b.edges[name] for name in (a, c)), max(hi, -lo)
    shape = tuple(max(pair) for pair in zip(x.shape, y.shape, strict=True))
    rq = graphs.short(np.array([gain * reach / (x.reach * y.reach)]), lo, hi)
    return b.put(Mul(b.name("mul"), a, c, rq), lo, hi, shape)


def table(b, source: str, lo: int, hi: int) -> str:
    edge = b.edges[source]
    values = b.rng.integers(lo, hi + 1, edge.hi - edge.lo + 1).astype(np.int32)
    return put(b, Table, source, lo, hi, edge.shape, edge.lo, values)


def sums(b, source: str) -> IntegerGraph:
    edge = b.edges[source]
    bound = edge.reach * int(np.prod(edge.shape[1:]))
    put(b, PlaneSum, source, -bound, bound, edge.shape[:1])
    return IntegerGraph("test", 8, tuple(b.nodes), dict(b.edges))


def assert_exact(graph: IntegerGraph, images: np.ndarray, targets: tuple[str, ...] = TARGETS) -> None:
    assert np.array_equal(from_bytes(*to_bytes(graph)).run(images), graph.run(images))
    for target in targets:
        data = build(graph, target).SerializeToString()
        for run in compare(graph, data, images, slow_images=1, target=target):
            assert run.exact, (target, run.engine, run.first, run.error)
        wrong = [proof for proof in prove(graph, data, target) if not proof.exact]
        assert not [proof for proof in wrong if proof.claim != "bias"], target  # these graphs' biases are arbitrary


SHUFFLE = (Reshape((2, 3, 4, 5)), Transpose((1, 0, 2, 3)), Reshape((6, 4, 5)))
MOVES: dict[str, tuple[Geometry, ...]] = {
    "channel shuffle": SHUFFLE,
    "pixel shuffle": (Slice(0, 1, 5), Reshape((1, 2, 2, 4, 5)), Transpose((0, 3, 1, 4, 2)), Reshape((1, 8, 10))),
    "slices": (Slice(0, 2, 6), Slice(1, 1, 3), Slice(2, 0, 4)),
    "planes turned": (Transpose((0, 2, 1)),),
    "upsampling": (Upsample((2, 3)),),
    "zeros between": (Spread((2, 3), (1, 0)),),
    "zeros in one direction": (Spread((1, 2)),),
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("lo", "hi"), [(-128, 127), pytest.param(0, 127, marks=SLOW), pytest.param(-31, 31, marks=SLOW)]
)
def test_moves_are_the_same_in_every_dialect(graphs, lo: int, hi: int) -> None:
    b = graphs.Builder((3, 4, 5))
    x = b.conv(INPUT, 6, (1, 1), lo=lo, hi=hi)
    ends = [b.average(b.conv(move(b, x, *hows), 2, (2, 2))) for hows in MOVES.values()]
    graph = b.graph(b.concat(*ends))
    assert_exact(graph, graphs.images(graph, 3))


@pytest.mark.parametrize(
    "ranges",
    [
        (-128, 127, 0, 127),
        (0, 3, -5, 9),
        *(pytest.param(ranges, marks=SLOW) for ranges in ((0, 127, 0, 127), (-128, 127, -127, 127))),
    ],
)
def test_products_of_planes_and_of_channel_factors(graphs, ranges: tuple[int, int, int, int]) -> None:
    lo, hi, low, high = ranges
    b = graphs.Builder((3, 5, 4))
    x = b.conv(INPUT, 4, lo=lo, hi=hi)
    factors = b.conv(b.average(x), 4, (1, 1), lo=low, hi=high)
    y = mul(b, graphs, x, factors, min(lo, low), max(hi, high))
    graph = b.graph(b.average(mul(b, graphs, y, x, lo, hi)))
    assert_exact(graph, graphs.images(graph, 3))


@pytest.mark.parametrize("weight_bits", [8, pytest.param(5, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_logits_of_every_pixel(graphs, weight_bits: int) -> None:
    b = graphs.Builder((3, 5, 4))
    x = b.conv(INPUT, 10, hi=15, padding=(1, 1, 1, 1))
    graph = b.dense(x, weight_bits=weight_bits, groups=5, stride=(1, 2), padding=(1, 0, 1, 2))
    assert graph.edges[graph.output].shape == (5, 5, 2)
    images = graphs.images(graph, 3)
    assert_exact(graph, images)
    no_bias = replace(graph.nodes[-1], bias=np.zeros(5, np.int32))
    assert_exact(replace(graph, nodes=(*graph.nodes[:-1], no_bias)), images)


@settings(max_examples=4)
@given(data=st.data())
def test_tables_of_any_contents(graphs, data: st.DataObject) -> None:
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    b = graphs.Builder((3, 5, 4), data.draw(st.integers(0, 1 << 16)))
    x = b.conv(INPUT, 4, **dict(zip(("lo", "hi"), pick((0, 127), (-128, 127), (-31, 31), (0, 3)), strict=True)))
    y = table(b, x, *pick((0, 127), (-128, 127), (-7, 7), (0, 1), (3, 40)))
    graph = b.graph(y)
    assert_exact(graph, graphs.images(graph, 2), (pick(*TARGETS),))


def test_a_table_of_the_image(graphs) -> None:
    b = graphs.Builder((3, 5, 4))
    graph = b.graph(table(b, INPUT, -128, 127))
    assert_exact(graph, np.arange(240).astype(np.uint8).reshape(4, 3, 5, 4))


@pytest.mark.parametrize("lo", [0, -128])
def test_sums_over_the_plane_are_logits(graphs, lo: int) -> None:
    b = graphs.Builder((3, 6, 5))
    graph = sums(b, b.conv(INPUT, 7, lo=lo))
    assert_exact(graph, graphs.images(graph, 3))
    x = np.full((1, 3, 6, 5), 255, np.uint8)
    assert_exact(graph, np.concatenate([x, 0 * x]))


def test_a_damaged_table_is_found(graphs) -> None:
    b = graphs.Builder((3, 5, 4))
    graph = b.graph(table(b, b.conv(INPUT, 4), 0, 127))
    for target in TARGETS:
        model = build(graph, target)
        gather = next(node for node in model.graph.node if node.op_type == "Gather")
        constant = next(value for value in model.graph.initializer if value.name == gather.input[0])
        values = onnx.numpy_helper.to_array(constant).copy()
        values[7] = 1 - values[7] if values[7] < 2 else values[7] - 1
        constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
        wrong = {(p.layer, p.claim) for p in prove(graph, model.SerializeToString(), target) if not p.exact}
        assert {(gather.output[0].split(":")[0], claim) for claim in ("table", "translation")} <= wrong, target


def test_products_count_as_multiplications_in_integers(graphs) -> None:
    b = graphs.Builder((3, 5, 4))
    x = b.conv(INPUT, 4, (1, 1))
    graph = b.graph(b.average(mul(b, graphs, x, table(b, x, 0, 127), 0, 127)), classes=2)
    found = audit(build(graph, "ort").SerializeToString())
    assert (found.macs, found.integer_macs, found.islands) == (4 * 20 * 3 + 4 * 20 + 4 * 2, found.macs, ())


def test_proof_files_with_them_hold_no_float(graphs) -> None:
    b = graphs.Builder((3, 4, 5))
    x = b.conv(INPUT, 6, (1, 1), lo=-128)
    y = move(b, mul(b, graphs, x, table(b, x, 0, 127), -128, 127), *SHUFFLE, Upsample((2, 2)), Spread((2, 2)))
    model = onnx.shape_inference.infer_shapes(build(sums(b, y), "proof"), strict_mode=True, data_prop=True)
    kinds = {value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.output]}
    kinds |= {value.data_type for value in model.graph.initializer}
    assert not kinds & {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}


def test_reshaping_and_back_is_nothing(graphs) -> None:
    b = graphs.Builder((6, 4, 5))
    there = move(b, INPUT, *SHUFFLE, Reshape((3, 2, 4, 5)), Transpose((1, 0, 2, 3)), Reshape((6, 4, 5)))
    graph = b.graph(put(b, Flatten, there, -128, 127, (120,)))
    images = graphs.images(graph, 2)
    from edgeq.export.reference import run

    codes = run(graph, images)
    np.testing.assert_array_equal(codes[there], codes[INPUT])
    assert isinstance(graph.edges[there], Edge)
