"""The permutation null: what chance gives, and that excess over it is 0 for chance."""

import pytest
import torch

from edgeq.errors import InputError
from edgeq.perceptual import Alignment, derangement, diagnose, neighbours


@pytest.mark.parametrize("batch", [2, 3, 17])
def test_no_image_meets_itself(batch: int) -> None:
    for order in (derangement(batch, torch.Generator().manual_seed(batch)), neighbours(batch)):
        assert sorted(order.tolist()) == list(range(batch))
        assert (order != torch.arange(batch)).all()


def test_a_single_image_has_no_null() -> None:
    for call in (neighbours, derangement):
        with pytest.raises(InputError, match="2 or more"):
            call(1)


@pytest.fixture(scope="module")
def noise() -> dict:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 100, 1, 32, 32, generator=generator)
    return diagnose(maps, generator=generator)


def test_independent_noise_looks_alike_to_histograms(noise: dict) -> None:
    assert 0.8 < noise["hog"].similarity.mean() < 0.9
    assert 0.85 < noise["soft_hog"].similarity.mean() < 0.95
    assert noise["edge_iou"].similarity.mean().item() == pytest.approx(0.15 / 1.85, abs=0.01)


@pytest.mark.parametrize(
    "name", ["cosine", "edge_iou", "hog", "hog_centred", "soft_dice", "soft_hog", "soft_hog_centred"]
)
def test_independent_noise_has_no_excess(noise: dict, name: str) -> None:
    assert noise[name].excess.abs().max() < 0.03


@pytest.mark.parametrize("name", ["hog_centred", "soft_hog_centred"])
def test_centring_alone_brings_noise_to_0(noise: dict, name: str) -> None:
    assert noise[name].similarity.mean().abs() < 0.03


def test_the_same_map_has_full_similarity_and_large_excess() -> None:
    maps = torch.randn(1, 20, 3, 16, 16).expand(2, -1, -1, -1, -1)
    for name, measured in diagnose(maps, Alignment(channels="mean"), orders=2).items():
        assert measured.similarity.mean().item() == pytest.approx(1.0, abs=1e-4), name
        assert measured.excess.item() > 0.05, name
