"""Small networks of the package diffusers, made here: what edgeq makes of them is what diffusers computes."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeq.attacks.latent import LATENT_WAYS, attack_autoencoder, autoencoder
from edgeq.attacks.pipeline import Effort
from edgeq.cli import main
from edgeq.errors import InputError, MissingExtra
from edgeq.purifiers import Draw, PurifierConfig, load_purifier, srl_from
from edgeq.purifiers.apply import purify_any
from edgeq.purifiers.config import plain, restored
from edgeq.purifiers.diffusers_vae import DiffusersPurifier, DiffusersVAE
from edgeq.purifiers.srl import SRLPurifier
from tests.purifiers.conftest import images, labels

diffusers = pytest.importorskip("diffusers", reason="needs pip install 'edgeq[diffusers]'")
SHAPE = (3, 16, 16)


def _kl() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )


def _tiny() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
    )


MADE = {"AutoencoderKL": _kl, "AutoencoderTiny": _tiny}


@pytest.fixture(scope="module", params=MADE)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers writes it."""
    folder = tmp_path_factory.mktemp("diffusers") / request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MADE[request.param]().eval().save_pretrained(folder)
    return folder


def _original(folder: Path) -> Any:
    return getattr(diffusers, folder.name).from_pretrained(str(folder), local_files_only=True).eval()


@torch.no_grad()
def test_latents_and_images_are_those_of_diffusers(saved: Path) -> None:
    model = _original(saved)
    purifier, x = DiffusersPurifier(model).eval(), images(4)
    encoded = model.encode(x / 127.5 - 1)
    latent = encoded.latents if saved.name == "AutoencoderTiny" else encoded.latent_dist.mean
    expected = (model.decode(latent).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(purifier(x), expected, atol=1e-6, rtol=1e-5)
    assert saved.name in purifier.not_exportable()


@pytest.mark.parametrize("blocks", [2, 4])
def test_images_of_any_size_keep_it(blocks: int) -> None:
    model = diffusers.AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    purifier = DiffusersPurifier(model).eval()
    assert purifier.grid == 2 ** (blocks - 1)  # 8 for the autoencoder of Stable Diffusion
    assert purify_any(purifier, images(1, side=36)[:, :, :, :20], draw=Draw(0)).shape == (1, 3, 36, 20)


def test_smoothing_begins_with_its_weights_and_leaves_the_decoder(saved: Path) -> None:
    method = srl_from(saved, steps=1)
    assert restored(json.loads(json.dumps(plain(PurifierConfig(method))))).method == method
    objective = method.objective(method.build(SHAPE, 4), 1e-3)
    purifier, model = objective.purifier, _original(saved)
    assert isinstance(purifier, SRLPurifier)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(purifier.origin.state_dict()[f"model.{name}"], tensor)
    for k in range(2):
        objective.step(images(4), labels(4), done=0.5, draw=Draw(k, shared=False))
    moved = {
        name.removeprefix("model.").split(".")[0]
        for name, tensor in purifier.smooth.state_dict().items()
        if not torch.equal(tensor, purifier.origin.state_dict()[name])
    }
    assert "encoder" in moved and moved <= {"encoder", "quant_conv"}


@pytest.mark.parametrize("way", LATENT_WAYS)
def test_it_can_be_attacked(saved: Path, way: str) -> None:
    purifier = DiffusersPurifier(_original(saved)).eval().requires_grad_(False)
    x, labels = images(6), torch.arange(6) % 2
    effort = Effort(steps=2, starts=1)
    found = attack_autoencoder(way, autoencoder(purifier), x, labels, eps=8, effort=effort)
    moved = (found.int() - x.int()).abs()
    assert 0 < int(moved.max()) <= 8


def test_the_command_line_smooths_a_folder_and_needs_it_no_more(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, "start")
    train = ["purify", "train", "--kind", "srl", "--start", "start", "--data", "signs:train=8,test=4"]
    assert main([*train, "--epochs", "1", "--batch-size", "4", "--steps", "1", "--out", "srl"]) == 0
    shutil.rmtree("start")
    _, purifier = load_purifier("srl")
    assert isinstance(purifier, SRLPurifier) and isinstance(purifier.smooth, DiffusersPurifier)
    purifier.smooth.model.save_pretrained("smoothed")
    again = DiffusersPurifier(_original_at("smoothed", saved.name))
    torch.testing.assert_close(again(images(2, side=32)), purifier(images(2, side=32)))


def _original_at(folder: str, name: str) -> Any:
    return getattr(diffusers, name).from_pretrained(folder, local_files_only=True).eval()


def test_bad_folders_are_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / saved.name
    shutil.copytree(saved, folder)
    with pytest.raises(InputError, match="resize them"):
        srl_from(folder).network.build((3, 15, 15), 4)
    weights = folder / DiffusersVAE.weights
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="expected a network of diffusers in"):
        srl_from(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"expected diffusion_pytorch_model\.safetensors beside"):
        srl_from(folder)
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(InputError, match="got UNet2DModel"):
        srl_from(folder)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"edgeq\[diffusers\]"):
        srl_from(saved)
