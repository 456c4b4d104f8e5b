"""Similarities of all pairs at once, against the definition pair by pair."""

import pytest
import torch
from torch import Tensor

from edgeq.perceptual.null import neighbours
from edgeq.perceptual.pairs import all_pairs, cosine, dice, overlap, sample_pairs


def one_dice(a: Tensor, b: Tensor) -> Tensor:
    return 2 * (a * b).sum() / ((a * a).sum() + (b * b).sum() + 1e-6)


def one_cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum() * (b * b).sum() + 1e-12).sqrt()


def one_overlap(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a + b > 0).sum() + 1e-6)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("many", "one"), [(dice, one_dice), (cosine, one_cosine), (overlap, one_overlap)])
def test_the_batch_of_pairs_is_the_loop(many, one, shuffled: bool) -> None:
    x = (torch.rand(4, 5, 30, dtype=torch.float64) < 0.3).double()
    order = neighbours(5, 2) if shuffled else None
    got = many(x, all_pairs(4), order)
    assert got.shape == (6, 5)
    for p, (i, j) in enumerate(all_pairs(4).tolist()):
        for n in range(5):
            m = n if order is None else int(order[n])
            expected = (one(x[i, n], x[j, m]) + one(x[j, n], x[i, m])) / 2
            torch.testing.assert_close(got[p, n], expected)


def test_sampled_pairs_are_different_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    for count in (1, 3, 10, 20):
        pairs = sample_pairs(5, count, generator)
        assert len({tuple(p) for p in pairs.tolist()}) == len(pairs) == min(count, 10)
        assert (pairs[:, 0] < pairs[:, 1]).all()
