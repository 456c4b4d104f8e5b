"""LPIPS and FID with weights drawn here: the published ones are nobody's to carry along."""

from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from edgeq.errors import InputError
from edgeq.purifiers.deep_metrics import DeepMetrics, deep_metrics, frechet

CPU = torch.device("cpu")
GEN = torch.Generator().manual_seed(0)
IMAGES = torch.rand(3, 3, 32, 32, generator=GEN)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = torchvision.models.AlexNet(num_classes=1).features
    torch.save({f"features.{name}": t for name, t in features.state_dict().items()}, path)
    return path


def _lpips_by_hand(path: Path, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the distances by torchvision's layers, and the weights of the package's own file."""
    import lpips

    net = torchvision.models.AlexNet(num_classes=1)
    net.features.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(path).items()})
    net.eval()
    linear = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = (((z * 2 - 1) - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for z in (x, y))
    total = torch.zeros(len(x))
    for index, layer in enumerate(net.features[:12]):
        a, b = layer(a), layer(b)
        if index in (1, 4, 7, 9, 11):
            unit = [z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (a, b)]
            weight = linear[f"lin{(1, 4, 7, 9, 11).index(index)}.model.1.weight"]
            total = total + ((unit[0] - unit[1]).square() * weight).sum(1).mean((1, 2))
    return total


@torch.no_grad()
def test_lpips_takes_alexnet_from_the_file(alexnet: Path) -> None:
    before = torch.random.get_rng_state()
    deep = deep_metrics(alexnet, None, image_shape=(3, 32, 32), device=CPU)
    assert torch.equal(before, torch.random.get_rng_state())
    assert deep.lpips is not None and deep.features is None
    other = (IMAGES + 0.1).clamp(0, 1)
    torch.testing.assert_close(deep.lpips(IMAGES, other), _lpips_by_hand(alexnet, IMAGES, other))
    assert deep.of(IMAGES, IMAGES) == {"lpips": 0.0}


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_the_frechet_distance_of_sets_that_differ_by_a_shift_and_a_stretch(seed: int, dims: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    rows = torch.randn(40, dims, generator=gen, dtype=torch.float64)
    shift, stretch = torch.randn(2, dims, generator=gen, dtype=torch.float64)
    assert frechet(rows, rows) == pytest.approx(0.0, abs=1e-6)
    assert frechet(rows, rows + shift) == pytest.approx(float(shift.square().sum()), abs=1e-6)
    # y = s x, s the same along all axes: m (1 - s) and C (1 - s)^2 are all that is left
    s = abs(float(stretch[0]))
    expected = float(rows.mean(0).square().sum() + rows.T.cov().reshape(dims, dims).trace()) * (1 - s) ** 2
    assert frechet(rows, s * rows) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_fid_compares_features_of_the_sets() -> None:
    deep = DeepMetrics(features=lambda images: images.flatten(2).mean(2))
    means = IMAGES.flatten(2).mean(2)
    assert deep.of(IMAGES, IMAGES.flip(0)) == {"fid": pytest.approx(0.0, abs=1e-9)}
    assert deep.of(IMAGES, IMAGES / 2)["fid"] == pytest.approx(frechet(means, means / 2))
    with pytest.raises(InputError, match="2 or more images"):
        deep.of(IMAGES[:1], IMAGES[:1])


@pytest.mark.slow
def test_inception_comes_from_the_file(tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    path, made = tmp_path / "inception.pth", {}
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inception, "load_state_dict", lambda net, state: made.update(net.state_dict()))
        torch.save({}, path)
        Inception("inception", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(made, path)
    deep = deep_metrics(None, path, image_shape=(3, 32, 32), device=CPU)
    assert deep.features is not None and deep.features(IMAGES).shape == (3, 2048)
    assert deep.of(IMAGES, IMAGES)["fid"] == pytest.approx(0.0, abs=1e-3)


def test_what_is_not_there_is_named(tmp_path: Path, alexnet: Path) -> None:
    foreign = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(2)}, foreign)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 no archive")
    shape = (3, 32, 32)
    for path, words in (
        (tmp_path / "none.pth", "got no file"),
        (foreign, "something else"),
        (damaged, "something else"),
    ):
        with pytest.raises(InputError, match=words):
            deep_metrics(path, None, image_shape=shape, device=CPU)
        with pytest.raises(InputError, match=words):
            deep_metrics(None, path, image_shape=shape, device=CPU)
    with pytest.raises(InputError, match="32 pixels or more"):
        deep_metrics(alexnet, None, image_shape=(3, 16, 16), device=CPU)
    assert deep_metrics(None, None, image_shape=(1, 8, 8), device=CPU) == DeepMetrics()
