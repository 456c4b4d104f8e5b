"""Two towers of images and texts."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from edgeq.errors import InputError
from edgeq.purifiers import Draw, load_guard, train_purifier
from edgeq.purifiers.captions import END, START, TEMPLATES, byte_tokens, captions
from edgeq.purifiers.towers import Naming, TowersObjective, contrast, named
from edgeq.training import Interrupted
from tests.purifiers.conftest import SIDE, TINY_TOWERS, config, dataset, images, labels
from tests.stopping import on_call

SHAPE = (3, SIDE, SIDE)


def _objective(**changes: object) -> TowersObjective:
    method = replace(TINY_TOWERS, **changes)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method.objective(method.build(SHAPE, 16), 3e-3)


def test_captions_are_bytes_between_two_marks() -> None:
    said = captions(("speed-30", "no_entry"))
    assert len(said) == 2 * len(TEMPLATES)
    assert said[0] == "a photo of a speed 30."
    assert said[len(TEMPLATES)] == "a photo of a no entry."
    row = byte_tokens(["hé"], 8)[0].tolist()
    assert row == [START, *"hé".encode(), END, 0, 0, 0]
    with pytest.raises(InputError, match="at most 3 bytes, got 4"):
        byte_tokens(["abcd"], 5)


def test_contrast_is_clips_loss_where_every_class_occurs_once() -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    rows, columns = contrast(logits, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(rows, -logits.log_softmax(1).diagonal())
    torch.testing.assert_close(columns, -logits.log_softmax(0).diagonal())
    rows, _ = contrast(logits, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(rows[0], -logits.log_softmax(1)[0, :2].mean())


def test_features_have_their_shapes_and_captions_their_mean() -> None:
    towers = _objective().purifier.towers
    seen, grid = towers.see(images(5))
    assert seen.shape == (5, 8)
    assert grid.shape == (5, 8, SIDE // 4, SIDE // 4)
    tokens = towers.tokens(captions(("a", "b")))
    each = F.normalize(towers.read(towers.embed(tokens), tokens.argmax(1)), dim=-1)
    by_hand = torch.stack([F.normalize(each[k : k + len(TEMPLATES)].mean(0), dim=0) for k in (0, len(TEMPLATES))])
    torch.testing.assert_close(named(towers, ("a", "b")), by_hand)


def test_a_text_does_not_see_what_follows_its_end() -> None:
    towers = _objective().purifier.towers
    short, long = towers.tokens(["a"]), towers.tokens(["a", "a much longer text"])
    alone, beside = (towers.read(towers.embed(t), t.argmax(1)) for t in (short, long))
    torch.testing.assert_close(alone[0], beside[0])


@pytest.mark.parametrize("hardened", [pytest.param(False, marks=pytest.mark.ci_slow), True])
def test_contrast_falls(hardened: bool) -> None:
    objective = _objective(hardened=hardened, eps=2.0)
    losses = [objective.step(images(16), labels(16), done=0.5, draw=Draw(k))["loss"] for k in range(12)]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert math.isfinite(losses[-1])


def test_towers_resume_with_the_same_bits_and_name_images(towers_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    method = config(TINY_TOWERS, lr=3e-3)
    with pytest.raises(Interrupted):
        train_purifier(method, out=broken, dataset=dataset(), stop=on_call(4))
    train_purifier(method, out=broken, resume=True, dataset=dataset())
    assert (broken / "weights.safetensors").read_bytes() == (towers_run / "weights.safetensors").read_bytes()
    assert (broken / "metrics.jsonl").read_bytes() == (towers_run / "metrics.jsonl").read_bytes()
    _, guard = load_guard(towers_run)
    assert isinstance(guard, Naming)
    assert guard.answers(images(3))["accuracy"].shape == (3, 2)


def test_wrong_choices_are_refused(tmp_path: Path) -> None:
    for changes, words in (
        ({"width": 20}, "multiples of 16"),
        ({"classes": ("a",)}, "2 or more classes"),
        ({"eps": 0.0}, "eps above 0"),
        ({"context": 16}, "captions of at most 14 bytes"),
    ):
        with pytest.raises(InputError, match=words):
            replace(TINY_TOWERS, **changes)
    with pytest.raises(InputError, match="multiples of the patch, 3"):
        replace(TINY_TOWERS, patch=3).build(SHAPE, 4)
    other = replace(TINY_TOWERS, classes=("a", "c"))
    with pytest.raises(InputError, match="names are read"):
        train_purifier(config(other), out=tmp_path / "run", dataset=dataset())
