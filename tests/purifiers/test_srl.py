import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from edgeq.attacks.ball import Ball, Pace, ascend
from edgeq.data.seeds import generator
from edgeq.errors import InputError
from edgeq.purifiers import SRL, VAE, Draw, PurifierConfig, load_purifier, srl_from, train_purifier
from edgeq.purifiers.base import as_unit
from edgeq.purifiers.config import plain, restored
from edgeq.purifiers.folders import PurifierInfo, save_weights, write_info
from edgeq.purifiers.srl import SRLObjective, SRLPurifier
from edgeq.training import Interrupted
from tests.purifiers.conftest import TINY_VAE, config, dataset, images, labels
from tests.stopping import on_call

SHAPE = (3, 16, 16)
NETWORK = dataclasses.replace(TINY_VAE, latent=8)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny autoencoder that draws something, and falls for attacks."""
    out = tmp_path_factory.mktemp("start") / "run"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective = NETWORK.objective(NETWORK.build(SHAPE, 16), 5e-3).train()
    for k in range(100):
        objective.step(images(16), labels(16), done=0.5, draw=Draw(k, shared=False))
    write_info(out, PurifierInfo(config(NETWORK), SHAPE))
    save_weights(out, objective.purifier)
    return out


def _objective(start: Path, *, lr: float = 3e-3, **choices: object) -> SRLObjective:
    method = srl_from(start, **choices)
    return method.objective(method.build(SHAPE, 16), lr)


def _walk(objective: SRLObjective, steps: int) -> SRLPurifier:
    for k in range(steps):
        objective.step(images(16), labels(16), done=0.5, draw=Draw(k, shared=False))
    return objective.purifier


def _worst(purifier: SRLPurifier) -> float:
    """The mean error under an attack that training did not make."""
    x = images(16)

    def errors(moved: torch.Tensor) -> torch.Tensor:
        return (purifier(moved) - x / 255).square().flatten(1).mean(1)

    found = ascend(errors, Ball(x, 16 / 255), Pace(10), generator("test"))
    with torch.no_grad():
        return float(errors(found).mean())


def test_it_begins_as_its_start_and_stands_alone_afterwards(start: Path, tmp_path: Path) -> None:
    begun = _objective(start).purifier.eval()
    _, vae = load_purifier(start)
    assert torch.equal(begun(images()), vae(images()))
    copy = tmp_path / "start"
    shutil.copytree(start, copy)
    train_purifier(config(srl_from(copy), epochs=1), out=tmp_path / "run", dataset=dataset())
    shutil.rmtree(copy)
    info, purifier = load_purifier(tmp_path / "run")
    assert isinstance(purifier, SRLPurifier)
    assert isinstance(info.config.method, SRL)
    assert info.config.method.network == NETWORK
    assert torch.equal(purifier.origin(images()), vae(images()))
    assert not torch.equal(purifier(images()), vae(images()))


def test_the_attack_of_training_keeps_to_eps_and_draws_worse(start: Path) -> None:
    objective = _objective(start, eps=16.0)
    objective.eval()
    x = images()
    found = objective.attacked(x, Draw(3))
    assert float((found - x / 255).abs().max()) <= 16 / 255 + 1e-7  # a rounding of float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(found, objective.attacked(x, Draw(3)))
    assert not torch.equal(found, objective.attacked(x, Draw(4)))
    purifier, gen = objective.purifier, generator("test")
    error = [float((purifier(y) - x / 255).square().mean().detach()) for y in (found, Ball(x, 16 / 255).random(gen))]
    assert error[0] > 1.2 * error[1]


def test_smoothing_lowers_the_error_under_attack_and_training_on_alone_does_not(start: Path) -> None:
    before = _worst(_objective(start, eps=16.0).purifier.eval())
    smoothed = _worst(_walk(_objective(start, eps=16.0, steps=3, step=0.5), 15))
    control = _worst(_walk(_objective(start, eps=1e-3, steps=1), 15))
    assert smoothed < 0.93 * before
    assert smoothed < 0.95 * control


def test_a_frozen_decoder_does_not_move_and_a_free_one_keeps_its_statistics(start: Path) -> None:
    for frozen in (True, False):
        purifier = _walk(_objective(start, frozen_decoder=frozen).train(), 2)
        smooth, origin = purifier.smooth.state_dict(), purifier.origin.state_dict()
        _, vae = load_purifier(start)
        assert all(torch.equal(t, origin[name]) for name, t in vae.state_dict().items())
        moved = {name for name, t in smooth.items() if not torch.equal(t, origin[name])}
        assert any(name.startswith("encoder.") for name in moved)
        assert any(name.startswith("decoder.") for name in moved) is not frozen
        assert not any("running" in name or "tracked" in name for name in moved)


def test_originality_holds_the_latents(start: Path) -> None:
    far = []
    for gamma in (0.0, 100.0):
        purifier = _walk(_objective(start, gamma=gamma, steps=1), 8)
        x = as_unit(images(16))
        far.append(float((purifier.encode(x) - purifier.origin.encode(x)).detach().square().mean()))
    assert far[1] < 0.5 * far[0]


def test_the_loss_is_the_sum_of_its_parts(start: Path) -> None:
    values = _objective(start, gamma=0.5, clean=0.25).step(images(), labels(), done=0.5, draw=Draw(0))
    assert values["originality"] == 0  # nothing has moved yet
    assert values["loss"] == pytest.approx(values["adversarial"] + 0.25 * values["reconstruction"], rel=1e-5)
    assert values["adversarial"] > values["reconstruction"]


@pytest.mark.parametrize("after", [2, 3, 5])
def test_a_stopped_smoothing_ends_with_the_same_bits(after: int, start: Path, tmp_path: Path) -> None:
    """Three batches an epoch: stopped within the first epoch, at its end, and within the second."""
    method = srl_from(start, steps=1)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train_purifier(config(method), out=straight, dataset=dataset())
    with pytest.raises(Interrupted):
        train_purifier(config(method), out=broken, dataset=dataset(), stop=on_call(after))
    torch.manual_seed(99)  # the caller's random state does not matter
    train_purifier(config(method), out=broken, resume=True, dataset=dataset())
    assert (broken / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()
    assert (broken / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def test_only_a_finished_vae_is_a_start(start: Path, vq_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got nothing"):
        srl_from(tmp_path / "nowhere")
    with pytest.raises(InputError, match="got one of purevq; train one with --kind vae"):
        srl_from(vq_run)
    copy = tmp_path / "copy"
    shutil.copytree(start, copy)
    method = srl_from(copy)
    (copy / "weights.safetensors").write_bytes((vq_run / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="expected the weights that this smoothing began with"):
        train_purifier(config(method), out=tmp_path / "run", dataset=dataset())
    assert not (tmp_path / "run").exists()
    (copy / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="has not finished"):
        srl_from(copy)


def test_choices_survive_json_and_a_damaged_network_is_named(start: Path, tmp_path: Path) -> None:
    chosen = PurifierConfig(method=srl_from(start, eps=4.0, frozen_decoder=False))
    assert restored(json.loads(json.dumps(plain(chosen)))) == chosen
    train_purifier(config(srl_from(start, steps=1), epochs=1), out=tmp_path / "run", dataset=dataset())
    path = tmp_path / "run/config.json"
    body = json.loads(path.read_text())
    del body["purifier"]["method"]["network"]
    path.write_text(json.dumps(body))
    with pytest.raises(InputError, match="'network'; train it again"):
        load_purifier(tmp_path / "run")


@pytest.mark.parametrize(
    "wrong", [{"eps": 0.0}, {"eps": 256.0}, {"steps": 0}, {"step": 0.0}, {"gamma": -1.0}, {"clean": math.nan}]
)
def test_wrong_choices_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        dataclasses.replace(SRL("run", "0" * 64, VAE()), **wrong)
