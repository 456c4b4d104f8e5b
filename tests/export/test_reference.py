from fractions import Fraction

import numpy as np
import pytest

from edgeq.export.graph import INPUT, AvgPool, Conv, Linear, MaxPool
from edgeq.export.reference import half_even_ratio, run, step


def clamp(value: int, lo: int, hi: int) -> int:
    return min(max(value, lo), hi)


@pytest.mark.parametrize(
    ("groups", "geometry"),
    [
        (1, {}),
        (1, {"stride": (2, 1), "padding": (1, 0, 2, 1)}),
        (2, {"dilation": (1, 2), "padding": (2, 2, 2, 2)}),
        (4, {"padding": (1, 1, 1, 1)}),
    ],
)
def test_conv_is_the_sum_written_out(graphs, groups: int, geometry: dict) -> None:
    b = graphs.Builder((4, 6, 7))
    name = b.conv(INPUT, 4, (3, 2), groups=groups, lo=-20, hi=100, **geometry)
    node, shape = b.nodes[-1], b.edges[name].shape
    assert isinstance(node, Conv) and node.requant is not None
    x = b.rng.integers(-128, 128, (2, 4, 6, 7)).astype(np.int32)
    got = step(node, [x])
    assert got.shape == (2, *shape)
    per_group = 4 // groups
    for n, o, i, j in np.ndindex(*got.shape):
        acc = int(node.bias[o])
        for c, u, v in np.ndindex(per_group, 3, 2):
            y = i * node.stride[0] + u * node.dilation[0] - node.padding[0]
            z = j * node.stride[1] + v * node.dilation[1] - node.padding[1]
            if 0 <= y < 6 and 0 <= z < 7:
                acc += int(node.weight[o, c, u, v]) * int(x[n, o // (4 // groups) * per_group + c, y, z])
        real = Fraction(acc * int(node.requant.m[o]), 1 << node.requant.n)
        assert got[n, o, i, j] == clamp(round(real), -20, 100)


def test_pools_are_what_they_say(graphs) -> None:
    b = graphs.Builder((2, 5, 5))
    b.max_pool(INPUT, (3, 2), (2, 1), (1, 0, 0, 1))
    b.average(INPUT, (2, 3), (1, 2), (0, 1, 1, 0))
    b.average(INPUT)
    largest, windowed, whole = b.nodes
    assert isinstance(largest, MaxPool) and isinstance(windowed, AvgPool) and isinstance(whole, AvgPool)
    x = b.rng.integers(-128, 128, (1, 2, 5, 5)).astype(np.int32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 1)), constant_values=-999)
    assert step(largest, [x])[0, 1, 1, 2] == padded[0, 1, 2:5, 2:4].max()
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (1, 0)))
    total = int(padded[0, 1, 4:6, 2:5].sum())
    assert step(windowed, [x])[0, 1, 4, 1] == clamp(
        round(Fraction(total * int(windowed.requant.m[0]), 1 << windowed.requant.n)), -128, 127
    )
    total = int(x[0, 1].sum())
    assert step(whole, [x])[0, 1, 0, 0] == clamp(
        round(Fraction(total * int(whole.requant.m[0]), 1 << whole.requant.n)), -128, 127
    )


def test_add_and_rescale_round_half_to_even(graphs) -> None:
    b = graphs.Builder()
    x = b.rescale(INPUT, 3, 6, lo=-128, hi=127)
    b.add(x, x, lo=-100, hi=90)
    scaled, total = b.nodes
    codes = np.arange(-128, 128, dtype=np.int32)
    assert step(scaled, [codes]).tolist() == [round(Fraction(int(c), 2)) for c in codes]
    expected = [clamp(round(Fraction(int(c) * (total.m_a + total.m_b), 1 << total.n)), -100, 90) for c in codes]
    assert step(total, [codes, codes]).tolist() == expected


def test_logits_are_the_accumulators(graphs) -> None:
    b = graphs.Builder((1, 2, 2))
    graph = b.graph(INPUT)
    image = np.array([[[[0, 128], [200, 255]]]], np.uint8)
    node = graph.nodes[-1]
    assert isinstance(node, Linear)
    assert run(graph, image)[INPUT].reshape(-1).tolist() == [-128, 0, 72, 127]
    expected = node.weight.astype(int) @ np.array([-128, 0, 72, 127]) + node.bias
    np.testing.assert_array_equal(graph.run(image)[0], expected)


def test_half_even_ratio() -> None:
    x = np.arange(-300, 300, dtype=np.int32)
    for num, den in [(1, 2), (3, 127), (7, 6), (255, 2)]:
        assert half_even_ratio(x, num, den).tolist() == [round(Fraction(int(v) * num, den)) for v in x]


def test_images_of_another_shape_are_refused(graphs) -> None:
    graph = graphs.Builder().graph(INPUT)
    with pytest.raises(ValueError, match=r"expected uint8 images of shape \(batch, 3, 8, 8\)"):
        graph.run(np.zeros((1, 3, 8, 9), np.uint8))
