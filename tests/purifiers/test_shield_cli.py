"""`edgeq purify` with towers and shields."""

import json
from pathlib import Path

import pytest

from edgeq.cli import main

DATA = ["--data", "signs:train=40,test=20", "--batch-size", "20", "--epochs", "1"]
TINY = ["--channels", "8", "--codes", "16", "--code-dim", "4", "--prompt-length", "2", "--steps", "1"]
QUICK = ["--eps", "8", "--images", "4", "--steps", "1", "--starts", "1", "--queries", "2"]


def _json(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    capsys.readouterr()
    got = main([*args, "--json", "-"])
    out, err = capsys.readouterr()
    assert got == 0, err
    return json.loads(out)


def _error(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    assert main(list(args)) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny towers and a tiny shield of them."""
    here = tmp_path_factory.mktemp("shields")
    towers = ["--width", "16", "--depth", "1", "--patch", "8"]
    assert main(["purify", "train", *DATA, "--kind", "towers", *towers, "--out", str(here / "towers")]) == 0
    shield = ["--kind", "shield", "--start", str(here / "towers"), *TINY]
    assert main(["purify", "train", *DATA, *shield, "--out", str(here / "shield")]) == 0
    return here


def test_a_shield_and_its_control_are_attacked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = ["--kind", "shield", "--start", str(place / "towers"), "--features", "none", "--steps", "1"]
    trained = _json(capsys, "purify", "train", *DATA, *control, "--out", str(place / "control"))
    assert set(trained["clean"]) == {"images", "accuracy", "caption_accuracy"}
    assert (
        main(
            [
                "purify",
                "evaluate",
                str(place / "shield"),
                "--against",
                "all",
                "--control",
                str(place / "control"),
                *QUICK,
            ]
        )
        == 0
    )
    told = capsys.readouterr().err
    assert all(word in told for word in ("class-branch", "published", "minimum", "shield accuracy", "control"))
    body = json.loads((place / "shield/results/purify.json").read_text())
    row = body["attacks"]["rows"][0]
    assert {"straight", "soft", "identity", "class-branch", "shield-branch", "fab", "square"} == set(row["ways"])
    assert {"published", "bare", "robust"} <= set(row)
    assert set(body["control"]["rows"][0]["ways"]) == {"straight", "fab", "square"}
    assert body["clean"]["codes"] == 16


def test_towers_are_measured_and_not_attacked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, "purify", "evaluate", str(place / "towers"))["clean"]["images"] == 20
    assert "kind shield to attack" in _error(capsys, "purify", "evaluate", str(place / "towers"), "--against", "all")


@pytest.mark.ci_slow
def test_towers_are_trained_first_where_none_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["purify", "train", *DATA, "--kind", "shield", "--tower-epochs", "1", *TINY, "--out"]
    body = _json(capsys, *args, str(tmp_path / "run"), "--adversarial-towers")
    assert body["kind"] == "shield"
    choices = json.loads((tmp_path / "run-towers/config.json").read_text())["purifier"]["method"]
    assert (choices["kind"], choices["hardened"]) == ("towers", True)
    (tmp_path / "run").rename(tmp_path / "other")
    assert "expected towers of these choices" in _error(capsys, *args, str(tmp_path / "run"))
    before = (tmp_path / "run-towers/weights.safetensors").stat().st_mtime_ns
    _json(capsys, *args, str(tmp_path / "run"), "--adversarial-towers")
    assert (tmp_path / "run-towers/weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("purify apply shield in out", "makes no images"),
        ("evaluate nowhere --purifier shield", "nowhere"),
        ("purify evaluate shield --against eot", "got 'eot'"),
        ("purify evaluate shield --classifier run", "its own model"),
        ("purify evaluate shield --control shield", "--against with --control"),
        ("purify evaluate shield --against all --control towers", "kind shield to attack"),
        ("purify evaluate nowhere --control shield", "--control with a run of kind shield"),
        ("purify train --out x --kind shield --patch 4", "--patch, which is one of towers"),
        ("purify train --out x --kind alp --continuous", "--continuous, which is one of shield"),
        ("purify train --out x --kind alp --adversarial-towers", "--adversarial-towers, which is one of towers"),
        ("purify train --out x --kind shield --start towers --adversarial-towers", "without --start"),
        ("purify train --out x --kind shield --model-name ViT-B-32", "--start FILE with --model-name"),
        ("purify train --out x --kind shield --start towers --quick-gelu", "--model-name with --quick-gelu"),
        ("purify train --out x --kind shield --start shield --data signs:train=40,test=20", "kind towers in shield"),
        ("purify train --out x --kind shield --start towers --fusion 0 --data signs:train=40,test=20", "features none"),
    ],
)
def test_mistakes_are_one_line(
    args: str, words: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert words in _error(capsys, *args.split())
    assert not Path("x").exists()


@pytest.mark.ci_slow
def test_a_classifier_is_not_put_behind_a_shield(
    place: Path, made_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "makes no images" in _error(capsys, "evaluate", str(made_run), "--purifier", str(place / "shield"))
