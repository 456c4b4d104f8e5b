import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import InputError
from edgeq.export import TorchExecutor
from edgeq.export.executor import _unfolded
from edgeq.export.graph import INPUT, Conv, Edge, IntegerGraph, Linear
from edgeq.export.multiplier import FLOAT32_EXACT, Requant
from edgeq.export.reference import run
from edgeq.export.sweep import thresholds


def assert_same(graph: IntegerGraph, images: np.ndarray, **options) -> None:
    expected = run(graph, images)
    executor = TorchExecutor(graph, **options)
    edges = executor.edges(torch.from_numpy(images))
    assert edges.keys() == expected.keys()
    for name, codes in expected.items():
        assert edges[name].dtype == torch.int32
        np.testing.assert_array_equal(edges[name].numpy(), codes, err_msg=name)
    np.testing.assert_array_equal(executor(torch.from_numpy(images)).numpy(), expected[graph.output])


@settings(max_examples=40)
@given(data=st.data())
def test_every_edge_is_the_interpreters(graphs, data: st.DataObject) -> None:
    graph = graphs.draw(data.draw)
    assert_same(graph, graphs.images(graph, 3), batch=2)


@pytest.mark.parametrize("groups", [1, 2])
def test_sums_beyond_float32_are_exact(graphs, groups: int) -> None:
    """512 channels of the largest weights and codes add up to 2^24 several times over."""
    b = graphs.Builder((512 * groups, 3, 3))
    weight = np.full((2, 512, 3, 3), 127, np.int8)
    weight[:, 0, 0, 0] = 126  # odd sums: float32 would lose the last bit
    b.edges[INPUT] = Edge(-128, 127, 1.0, b.shape)
    rq = Requant(np.array([1, 3], np.int32), 17, -128, 127)
    bias = np.array([1, -1], np.int32)
    wide = Conv("wide", INPUT, weight, bias, rq, 8, padding=(1, 1, 1, 1), groups=groups)
    b.put(wide, -128, 127, (2, 3, 3))
    images = graphs.images(graph := b.graph("wide"), 2)
    images[1] = 255
    assert 4 * FLOAT32_EXACT < 9 * 512 * 127 * 128
    assert_same(graph, images)


def test_a_grouped_layer_whose_bias_alone_is_large_is_exact(graphs) -> None:
    """Its sums of products fit into float32, those with the bias do not."""
    b = graphs.Builder((4, 3, 3))
    x = b.conv(INPUT, 4, groups=4, padding=(1, 1, 1, 1))
    graph = b.graph(x)
    node = graph.nodes[0]
    large = dataclasses.replace(node, bias=np.full(4, (1 << 24) + 3, np.int32))
    graph = dataclasses.replace(graph, nodes=(large, *graph.nodes[1:]))
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    assert_same(graph, images)


def test_multipliers_that_are_not_short_take_the_integer_rule() -> None:
    """Accumulators beside the thresholds of 24-bit multipliers, where float32 would give another code."""
    m = np.random.default_rng(0).integers(1 << 23, 1 << 24, 200).astype(np.int32)
    acc = thresholds(Requant(m, 30, 0, 127), np.full(200, 1 << 20))
    rq = Requant(m.repeat(acc.shape[1]), 30, 0, 127)
    bias, count = acc.astype(np.int32).reshape(-1), acc.size
    node = Conv("bias", INPUT, np.zeros((count, 1, 1, 1), np.int8), bias, rq, 8)
    edges = {INPUT: Edge(-128, 127, 1.0, (1, 1, 1)), "bias": Edge(0, 127, 1.0, (count, 1, 1))}
    engine = np.clip(np.rint(bias.astype(np.float32) * (rq.m.astype(np.float32) * np.float32(2.0**-30))), 0, 127)
    images = np.zeros((1, 1, 1, 1), np.uint8)
    expected = run(graph := IntegerGraph("bias", 8, (node,), edges), images)["bias"].reshape(-1)
    assert (engine != expected).any()
    got = TorchExecutor(graph).edges(torch.from_numpy(images))["bias"]
    np.testing.assert_array_equal(got.numpy().reshape(-1), expected)


def test_logits_keep_all_their_bits(graphs) -> None:
    b = graphs.Builder((300, 8, 8))
    flat = b.flatten(INPUT)
    weight = np.full((1, 300 * 64), 127, np.int8)
    b.put(Linear("fc", flat, weight, np.array([1], np.int32), None, 8), -(1 << 30), 1 << 30, (1,))
    graph = IntegerGraph("wide", 8, tuple(b.nodes), b.edges)
    images = np.full((1, 300, 8, 8), 255, np.uint8)
    assert int(TorchExecutor(graph)(torch.from_numpy(images))[0, 0]) == 300 * 64 * 127 * 127 + 1
    assert_same(graph, images)


def test_windows_as_matrix_products_are_the_convolution() -> None:
    """What CUDA runs, here on the CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (2, 4, 9, 8), generator=generator).float()
    for groups, stride, dilation in [(1, (1, 2), (1, 1)), (2, (2, 1), (2, 1)), (4, (1, 1), (1, 3))]:
        weight = torch.randint(-127, 128, (8, 4 // groups, 3, 2), generator=generator).float()
        options = {"stride": stride, "dilation": dilation, "groups": groups}
        assert torch.equal(_unfolded(x, weight, **options), torch.nn.functional.conv2d(x, weight, **options))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_exact_and_leaves_the_settings_alone(graphs) -> None:
    graph = graphs.resnet(8, width=64)
    images = graphs.images(graph, 8)
    before = torch.backends.cuda.matmul.fp32_precision
    codes = TorchExecutor(graph, "cuda").edges(torch.from_numpy(images))
    assert torch.backends.cuda.matmul.fp32_precision == before
    for name, expected in run(graph, images).items():
        np.testing.assert_array_equal(codes[name].cpu().numpy(), expected, err_msg=name)


def test_the_callers_autocast_and_gradient_mode_change_nothing(graphs) -> None:
    graph = graphs.resnet(4, width=4, blocks=1, size=8)
    images = torch.from_numpy(graphs.images(graph, 2))
    expected = TorchExecutor(graph)(images)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        got = TorchExecutor(graph)(images)
        assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    assert torch.equal(got, expected) and not got.requires_grad


def test_no_warning_and_no_change_of_threads(graphs) -> None:
    threads = torch.get_num_threads()
    graph = graphs.resnet(2, width=4, blocks=1, size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchExecutor(graph)(torch.from_numpy(graphs.images(graph, 1)))
    assert torch.get_num_threads() == threads


def test_other_images_are_refused(graphs) -> None:
    executor = TorchExecutor(graphs.resnet(8, width=4, blocks=1, size=8))
    with pytest.raises(InputError, match=r"expected uint8 images of shape \(batch, 3, 8, 8\)"):
        executor(torch.zeros(1, 3, 9, 8, dtype=torch.uint8))


def test_an_empty_batch_gives_no_logits(graphs) -> None:
    executor = TorchExecutor(graphs.resnet(8, width=4, blocks=1, size=8))
    assert executor(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)).shape == (0, 10)


def test_a_batch_of_none_is_refused(graphs) -> None:
    with pytest.raises(InputError, match="batch of at least 1"):
        TorchExecutor(graphs.resnet(8, width=4, blocks=1, size=8), batch=0)
