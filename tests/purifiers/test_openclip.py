"""Two towers of open_clip: a tiny model, built here and read from files as a real one would be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from edgeq.errors import InputError, MissingExtra
from edgeq.purifiers import Draw, OpenClip, load_guard, shield_from, train_purifier
from edgeq.purifiers.openclip import OpenClipTowers
from tests.purifiers.conftest import config, dataset, images, labels

open_clip = pytest.importorskip("open_clip")

CONFIG: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def _written(folder: Path, **changes: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_cfg": CONFIG | changes}))
    return str(path)


def _model(**changes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(**(CONFIG | changes)).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as open_clip's own training saves them."""
    path = tmp_path_factory.mktemp("openclip") / "model.pt"
    torch.save({"state_dict": _model().state_dict()}, path)
    return path


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_features_are_open_clips_own(quick_gelu: bool, weights: Path, tmp_path: Path) -> None:
    network = OpenClip.of(_written(tmp_path), quick_gelu=quick_gelu)
    towers = network.towers((3, 16, 16))
    towers.load_state_dict(network.read(weights))
    model = _model(quick_gelu=quick_gelu)
    constants = [
        torch.tensor(numbers).view(1, 3, 1, 1)
        for numbers in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    ]
    x = (images(3) / 255 - constants[0]) / constants[1]
    with torch.no_grad():
        seen, grid = towers.see(images(3))
        torch.testing.assert_close(seen, model.encode_image(x))
        assert grid.shape == (3, 8, 4, 4)
        found = model.visual.forward_intermediates(x, indices=1, normalize_intermediates=True)["image_intermediates"]
        own = (found[-1].flatten(2).transpose(1, 2) @ model.visual.proj).transpose(1, 2)
        torch.testing.assert_close(grid.flatten(2), own)
        tokens = towers.tokens(["a stop sign.", "a tree"])
        torch.testing.assert_close(towers.read(towers.embed(tokens), tokens.argmax(1)), model.encode_text(tokens))
        torch.testing.assert_close(towers.scale, model.logit_scale.exp())
        other, _ = towers.see(images(3, side=32))  # resized to the model's own size
    assert other.shape == seen.shape


def test_a_shield_of_an_open_clip_model_is_trained_and_stands_alone(weights: Path, tmp_path: Path) -> None:
    network = OpenClip.of(_written(tmp_path))
    method = shield_from(
        weights, ("a", "b"), network=network, channels=8, codes=16, code_dim=4, prompt_length=4, steps=1
    )
    train_purifier(config(method, epochs=1), out=tmp_path / "run", dataset=dataset())
    info, guard = load_guard(tmp_path / "run")
    assert info.config.method == method
    assert guard.answers(images(2))["accuracy"].shape == (2, 2)  # type: ignore[operator]
    first = network.read(weights)
    assert all(torch.equal(t, first[name]) for name, t in guard.towers.state_dict().items())  # type: ignore[union-attr]


def test_learned_prompts_stand_between_the_start_and_the_name(weights: Path, tmp_path: Path) -> None:
    network = OpenClip.of(_written(tmp_path))
    method = shield_from(weights, ("a", "b"), network=network, features="none", prompt_length=3)
    objective = method.objective(method.build((3, 16, 16), 4), 1e-2)
    guard, model = objective.purifier, _model()
    words = open_clip.get_tokenizer("ViT-B-32")(["x x x a.", "x x x b."], context_length=32)
    with torch.no_grad():
        guard.prompt.copy_(model.token_embedding(words[0, 1:4]))  # three vectors that are words after all
        torch.testing.assert_close(guard.texts(), F.normalize(model.encode_text(words), dim=-1))
    objective.step(images(4), labels(4), done=0.5, draw=Draw(0))
    assert not torch.equal(guard.prompt, model.token_embedding(words[0, 1:4]))


def test_names_and_their_activations() -> None:
    assert not json.loads(OpenClip.of("ViT-B-32").settings)["quick_gelu"]
    assert json.loads(OpenClip.of("ViT-B-32-quickgelu").settings)["quick_gelu"]
    assert json.loads(OpenClip.of("ViT-B-32", quick_gelu=True).settings)["quick_gelu"]


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "xlm-roberta-base-ViT-B-32"])
def test_other_architectures_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"vision transformer, got '{name}'"):
        OpenClip.of(name)


def test_mistakes_are_one_line(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = OpenClip.of(_written(tmp_path))
    with pytest.raises(InputError, match="a model that open_clip knows, got 'ViT-Z-1'"):
        OpenClip.of("ViT-Z-1")
    with pytest.raises(InputError, match="which is none"):
        network.read(tmp_path / "nowhere")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"expected weights of this model of open_clip in .*bad\.pt"):
        network.read(tmp_path / "bad.pt")
    wide = OpenClip.of(_written(tmp_path, embed_dim=4))
    with pytest.raises(InputError, match="expected weights of this model"):
        wide.read(weights)
    broken = CONFIG["vision_cfg"] | {"magic": 1}
    with pytest.raises(InputError, match="magic"):
        OpenClip.of(_written(tmp_path, vision_cfg=broken)).towers((3, 16, 16))

    def gone(name: str) -> Any:
        raise ModuleNotFoundError(name="open_clip")

    monkeypatch.setattr("importlib.import_module", gone)
    with pytest.raises(MissingExtra, match=r"edgeq\[openclip\]"):
        OpenClip.of("ViT-B-32")


def test_the_towers_are_float32(weights: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.pt"
    torch.save({name: t.half() for name, t in torch.load(weights)["state_dict"].items()}, half)
    read = OpenClip.of(_written(tmp_path)).read(half)
    assert {t.dtype for t in read.values()} == {torch.float32}
    assert isinstance(OpenClip.of(_written(tmp_path)).towers((3, 16, 16)), OpenClipTowers)
