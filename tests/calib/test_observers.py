import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeq.calib.methods import MinMax
from edgeq.calib.observers import PIECE, Observer
from edgeq.errors import InputError


def seen(*batches: torch.Tensor, bins: int = 256) -> Observer:
    observer = Observer("edge", bins=bins)
    for batch in batches:
        observer.add(batch)
    return observer


@pytest.mark.parametrize(("lo", "hi"), [(-127, 127), (-7, 7), (-1, 1), (0, 127), (0, 15), (0, 3)])
def test_minmax_is_torchaos_bit_for_bit(lo: int, hi: int) -> None:
    from torchao.quantization.pt2e.observer import MinMaxObserver

    generator = torch.Generator().manual_seed(hi)
    batches = [torch.randn(50, 7, generator=generator) * k for k in (1, 3, 2)]
    if lo == 0:
        batches = [batch.relu() for batch in batches]
    scheme = torch.per_tensor_affine if lo == 0 else torch.per_tensor_symmetric
    theirs = MinMaxObserver(dtype=torch.qint8, qscheme=scheme, quant_min=lo, quant_max=hi)
    for batch in batches:
        theirs(batch)
    ours = MinMax().step(seen(*batches).histogram(), hi)
    assert torch.tensor(ours, dtype=torch.float32) == theirs.calculate_qparams()[0]


def test_one_batch_is_counted_as_numpy_counts() -> None:
    x = torch.randn(3, 4, 5, 6)
    histogram = seen(x).histogram()
    expected, _ = np.histogram(x.abs().numpy(), 256, (0.0, float(x.abs().max())))
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() <= 2  # values on a boundary, in float32
    assert histogram.counts.sum() == x.numel()
    assert histogram.top == float(x.abs().max())


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 5))
def test_a_growing_range_loses_nothing(scales: list[int], zeros: int) -> None:
    batches = [torch.cat([torch.linspace(-s / 8, s / 8, 41)[:20], torch.zeros(zeros)]) for s in scales]
    histogram = seen(*batches).histogram()
    assert histogram.zeros == zeros * len(scales)
    assert histogram.counts.sum() == pytest.approx(20 * len(scales), rel=1e-12)
    assert histogram.top == max(float(batch.abs().max()) for batch in batches)


def test_counts_beyond_what_float32_holds() -> None:
    histogram = seen(torch.ones(PIECE + 8), bins=4).histogram()
    assert histogram.counts.tolist() == [0, 0, 0, PIECE + 8]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_name_the_edge(value: float) -> None:
    with pytest.raises(InputError, match="'edge'"):
        seen(torch.tensor([1.0, value]))


@pytest.mark.parametrize("x", [torch.zeros(4), torch.zeros(0), torch.full((4,), 1e-40)])
def test_a_dead_edge(x: torch.Tensor) -> None:
    histogram = seen(x).histogram()
    assert histogram.dead
    assert histogram.zeros == len(x)


@pytest.mark.ci_slow
def test_importing_calib_does_not_import_torchao() -> None:
    code = "import sys, edgeq.calib; sys.exit('torchao' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
