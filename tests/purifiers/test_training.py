import json
import shutil
from pathlib import Path

import pytest
import torch

from edgeq.errors import InputError
from edgeq.purifiers import ALP, Progress, PureVQ, load_purifier, train_purifier
from edgeq.training import Diverged, Interrupted
from tests.purifiers.conftest import METHODS, TINY_ALP, TINY_VQ, config, dataset
from tests.stopping import on_call


def test_a_run_folder_holds_what_it_must(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {"config.json", "weights.safetensors", "metrics.jsonl"}
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {"psnr", "ssim"} <= lines[0]["fidelity"].keys()


@pytest.mark.parametrize(("name", "after"), [("vq", 2), ("vq", 3), ("vq", 5), ("fsq", 5), ("alp", 2), ("vae", 4)])
def test_a_stopped_run_ends_with_the_same_bits(name: str, after: int, tmp_path: Path) -> None:
    """Three batches an epoch: stopped within the first epoch, at its end, and within the second."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train_purifier(config(METHODS[name]), out=straight, dataset=dataset())
    with pytest.raises(Interrupted):
        train_purifier(config(METHODS[name]), out=broken, dataset=dataset(), stop=on_call(after))
    assert (broken / "state").is_dir()
    torch.manual_seed(99)  # the caller's random state does not matter
    train_purifier(config(METHODS[name]), out=broken, resume=True, dataset=dataset())
    assert (broken / "weights.safetensors").read_bytes() == (straight / "weights.safetensors").read_bytes()
    assert (broken / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert not (broken / "state").exists()


def test_training_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_purifier(config(TINY_VQ, epochs=1), out=tmp_path / "run", dataset=dataset())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize("method", [PureVQ(16, 1, codes=64, code_dim=8, adversarial=0.0), ALP(16, 1, latent=16)])
def test_training_makes_images_more_alike(method: PureVQ | ALP, tmp_path: Path) -> None:
    seen: list[Progress] = []
    chosen = config(method, data="signs:train=640,test=60", epochs=4, batch_size=32, lr=2e-3)
    train_purifier(chosen, out=tmp_path / "run", progress=seen.append)
    psnr = [p.fidelity["psnr"] for p in seen if p.fidelity]
    assert psnr[-1] > psnr[0] + 1
    assert seen[-1].losses["reconstruction"] < 0.5 * seen[0].losses["reconstruction"]


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeq.purifiers.purevq import PureVQObjective

    whole, calls = PureVQObjective.step, 0

    def step(
        self: PureVQObjective, images: torch.Tensor, labels: torch.Tensor, *, done: float, draw: object
    ) -> dict[str, float]:
        nonlocal calls
        calls += 1
        losses = whole(self, images, labels, done=done, draw=draw)  # type: ignore[arg-type]
        return losses if calls < 5 else losses | {"loss": float("nan")}

    monkeypatch.setattr(PureVQObjective, "step", step)
    out = tmp_path / "run"
    with pytest.raises(Diverged, match="expected a finite loss, got nan at epoch 1, batch 1"):
        train_purifier(config(TINY_VQ), out=out, dataset=dataset())
    assert not (out / "weights.safetensors").exists()
    monkeypatch.setattr(PureVQObjective, "step", whole)
    resumed = train_purifier(config(TINY_VQ), out=out, resume=True, dataset=dataset())
    assert all(bool(p.isfinite().all()) for p in resumed.parameters())


def test_sigma_of_alp_is_learned_or_fixed(tmp_path: Path) -> None:
    import dataclasses

    learned = train_purifier(config(TINY_ALP), out=tmp_path / "a", dataset=dataset())
    fixed = dataclasses.replace(TINY_ALP, learn_sigma=False, sigma=0.25)
    kept = train_purifier(config(fixed), out=tmp_path / "b", dataset=dataset())
    silent = dataclasses.replace(TINY_ALP, learn_sigma=False, sigma=0.0)
    none = train_purifier(config(silent), out=tmp_path / "c", dataset=dataset())
    assert float(learned.sigma) != pytest.approx(0.5, abs=1e-6)  # type: ignore[arg-type]
    assert float(kept.sigma) == pytest.approx(0.25)  # type: ignore[arg-type]
    assert float(none.sigma) == 0  # type: ignore[arg-type]
    load_purifier(tmp_path / "c")


def test_wrong_folders_are_refused(vq_run: Path, made_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(vq_run, copy)
    with pytest.raises(InputError, match="holds a run"):
        train_purifier(config(TINY_VQ), out=copy, dataset=dataset())
    with pytest.raises(InputError, match="epochs=3"):
        train_purifier(config(TINY_VQ, epochs=3), out=copy, resume=True, dataset=dataset())
    with pytest.raises(InputError, match="has finished"):
        train_purifier(config(TINY_VQ), out=copy, resume=True, dataset=dataset())
    with pytest.raises(InputError, match="got another run"):
        load_purifier(made_run)
    with pytest.raises(InputError, match="got nothing"):
        load_purifier(tmp_path / "nowhere")
    (copy / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="got none"):
        load_purifier(copy)
    (copy / "weights.safetensors").write_bytes((made_run / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="do not belong together"):
        load_purifier(copy)
    body = json.loads((copy / "config.json").read_text())
    del body["purifier"]["method"]
    (copy / "config.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match="train it again"):
        load_purifier(copy)
