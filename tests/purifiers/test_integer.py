"""Trained purifiers in integers: the bytes of the deployed arithmetic, and what has no integer form."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeq.errors import InputError
from edgeq.export import lower, save
from edgeq.export.graph import Codebook, Table
from edgeq.purifiers import ALP, SRL, VAE, PureVQ, load_purifier
from edgeq.purifiers.apply import apply_folder, weights_of
from edgeq.purifiers.artefact import load_integer_purifier
from edgeq.purifiers.integer import integer_fidelity, integer_purifier, operators, redrawn
from edgeq.purifiers.purevq import PureVQPurifier
from edgeq.purifiers.vae import VAEPurifier
from edgeq.quant.bits import at_bits
from tests.purifiers.conftest import TINY_ALP, TINY_FSQ, TINY_VAE, TINY_VQ, dataset, images

SHAPE = (3, 16, 16)


@pytest.mark.parametrize(
    "trained", ["vq", *(pytest.param(kind, marks=pytest.mark.ci_slow) for kind in ("fsq", "vae"))], indirect=True
)
def test_a_trained_purifier_draws_the_same_bytes_everywhere(trained: Path, tmp_path: Path) -> None:
    info, purifier = load_purifier(trained)
    net, x = integer_purifier(purifier, images(48), bits=(8, 4)), images(6, seed=2)
    rows = integer_fidelity(purifier, net, dataset().test)
    assert [row.bits for row in rows] == [32, 8, 4] and rows[0].psnr_to_float > 60
    assert all(15 < row.psnr_to_float < rows[0].psnr_to_float for row in rows[1:])
    assert (rows[0].codes_agree is None) == (info.config.method.kind == "vae") and rows[0].codes_agree in (None, 1.0)
    graph = lower(net, bits=4)
    assert any(isinstance(node, Codebook | Table) for node in graph.nodes) == (rows[0].codes_agree is not None)
    save(graph, path=tmp_path / "art", inputs=x.numpy())
    bytes_to_bytes = load_integer_purifier(tmp_path / "art")
    with at_bits(net, 4):
        assert torch.equal(bytes_to_bytes(x), redrawn(net, x))
    with pytest.raises(InputError, match=r"images of shape \(3, 16, 16\) for this artefact, got \(3, 8, 8\)"):
        bytes_to_bytes(x[:, :, :8, :8])
    (tmp_path / "in").mkdir()
    for name, pixels in (("a", x[0]), ("b", x[1]), ("large", images(1, side=24)[0])):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"in/{name}.png")
    weights = weights_of(tmp_path / "art")
    done = apply_folder(bytes_to_bytes, tmp_path / "in", tmp_path / "out", weights=weights)
    assert done.done == 2 and [message.partition(": ")[0] for message in done.bad] == [str(tmp_path / "in/large.png")]
    with Image.open(tmp_path / "out/b.png") as image:
        np.testing.assert_array_equal(np.asarray(image), bytes_to_bytes(x)[1].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("method", [TINY_VQ, TINY_FSQ, dataclasses.replace(TINY_FSQ, levels=(5, 5)), TINY_VAE], ids=str)
def test_operators_are_the_purifier(method: PureVQ | VAE) -> None:
    torch.manual_seed(0)
    purifier = method.build(SHAPE, 16).eval()
    assert isinstance(purifier, PureVQPurifier | VAEPurifier)
    x = torch.rand(3, *SHAPE)
    with torch.no_grad():
        raw = operators(purifier)(x * 2 - 1)
        torch.testing.assert_close((raw / 2 + 0.5).clamp(0, 1), purifier(x))
        if isinstance(purifier, PureVQPurifier):
            latent = purifier.encode(x * 2 - 1)
            words = purifier.bottleneck.choose(latent, 0.0)
            assert torch.equal(purifier.bottleneck.numbers(words), purifier.bottleneck.indices(latent))


def test_a_smoothed_autoencoder_is_its_network() -> None:
    torch.manual_seed(0)
    purifier = SRL("start", "0", TINY_VAE).build(SHAPE, 16).eval()
    x = torch.rand(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close((operators(purifier)(x * 2 - 1) / 2 + 0.5).clamp(0, 1), purifier(x))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (TINY_ALP, "Gaussian noise needs a source of randomness"),
        (dataclasses.replace(TINY_VQ, form="paper"), "GroupNorm depends on the statistics of each image"),
        (dataclasses.replace(TINY_VAE, form="paper"), "GroupNorm depends on the statistics of each image"),
    ],
    ids=["alp", "vq", "vae"],
)
def test_what_has_no_integer_form_is_refused_by_name(method: ALP | PureVQ | VAE, words: str) -> None:
    with pytest.raises(InputError, match=f"expected a purifier that can run in integers, got one that cannot: {words}"):
        operators(method.build(SHAPE, 16).eval())


def test_an_artefact_of_a_classifier_is_no_purifier(made_artefact: Path) -> None:
    with pytest.raises(InputError, match=r"expected an artefact that redraws images in .*, got one of a classifier"):
        load_integer_purifier(made_artefact)
