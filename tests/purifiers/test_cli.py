import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from edgeq.cli import main
from edgeq.runs import EVALUATION

DATA = ["--data", "signs:train=60,test=20", "--epochs", "1", "--batch-size", "20"]
TRAIN = ["purify", "train", *DATA, "--channels", "8", "--blocks", "1"]


def _json(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> dict:
    capsys.readouterr()
    got = main([*args, "--json", "-"])
    out, err = capsys.readouterr()
    assert got == code, err
    return json.loads(out)


def _error(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    assert main(list(args)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_train_apply_evaluate(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    body = _json(capsys, *TRAIN, "--codes", "16", "--code-dim", "4", "--out", "vq")
    assert body["command"] == "purify"
    assert body["fidelity"]["images"] == 20
    assert json.loads(Path("vq/results/purify.json").read_text())["fidelity"] == body["fidelity"]

    Path("in/sub").mkdir(parents=True)
    Image.new("RGB", (32, 32), (200, 30, 30)).save("in/sub/a.png")
    Path("in/bad.png").write_bytes(b"no image")
    done = _json(capsys, "purify", "apply", "vq", "in", "out", code=2)
    assert (done["purified"], len(done["bad"])) == (1, 1)
    Path("in/bad.png").unlink()
    assert _json(capsys, "purify", "apply", "vq", "in", "out")["kept"] == 1

    quick = [
        "--against",
        "straight",
        "square",
        "--eps",
        "64",
        "--images",
        "4",
        "--steps",
        "1",
        "--starts",
        "1",
        "--queries",
        "2",
    ]
    judged = _json(capsys, "purify", "evaluate", "vq", "--classifier", str(made_run), *quick)
    assert [body["bits"] for body in judged["attacks"]] == [32, 4]
    assert set(judged["attacks"][0]["rows"][0]["ways"]) == {"straight", "square"}
    kept = json.loads(Path("vq/results/purify.json").read_text())
    assert kept["attacks"] == judged["attacks"]
    found = {path: path.stat().st_mtime_ns for path in Path("vq/results/attacked").iterdir()}
    assert len(found) == 4  # two widths, two ways
    again = _json(capsys, "purify", "evaluate", "vq", "--classifier", str(made_run), *quick)
    assert again["attacks"] == judged["attacks"]
    assert {path: path.stat().st_mtime_ns for path in Path("vq/results/attacked").iterdir()} == found  # nothing anew
    _json(capsys, "purify", "evaluate", "vq")
    assert json.loads(Path("vq/results/purify.json").read_text())["attacks"] == judged["attacks"]  # nothing lost
    page = _json(capsys, "report", "vq", "--out", "page.html")
    assert page["purifiers"] == ["vq"]
    html = Path("page.html").read_text()
    for words in ("PSNR on clean images", "codewords in use", "What it makes of images", "Under attack", "straight"):
        assert words in html
    assert html.count('<svg class="pixels"') + html.count("<image ") >= 16  # eight images, before and after
    assert html.count("after each epoch of training") == 4
    assert "got 'eot'" in _error(
        capsys, *["purify", "evaluate", "vq", "--against", "eot", "--classifier"], str(made_run)
    )
    assert [row["bits"] for row in judged["results"]] == [32, 4]
    assert judged["results"][0]["total"] == judged["fidelity"]["images"] == 100


def test_a_run_and_its_artefact_behind_a_purifier(
    made_run: Path,
    made_artefact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made_run, "run")
    shutil.copytree(made_artefact, "art")
    _json(capsys, *TRAIN, "--kind", "alp", "--latent", "8", "--out", "alp")
    draws = ("--purifier", "alp", "--samples", "3", "--seed", "5")
    run = _json(capsys, "evaluate", "run", *draws)
    asked = ("--classifier", "run", "--samples", "3", "--seed", "5", "--images", "4")
    judged = _json(capsys, "purify", "evaluate", "alp", *asked)
    assert (run["purifier"], run["samples"]) == ("alp", 3)
    names = ("bits", "accuracy", "purified_accuracy", "total")
    assert [{name: row[name] for name in names} for row in run["results"]] == [
        {name: row[name] for name in names} for row in judged["results"]
    ]
    art = _json(capsys, "evaluate", "art", *draws)
    assert (art["purified_accuracy"], art["samples"]) == (run["results"][1]["purified_accuracy"], 3)
    assert "purified" not in Path("run/results", EVALUATION).read_text()
    assert "name the purifier's run" in _error(capsys, "evaluate", "run", "--samples", "3")
    assert "got both" in _error(capsys, "evaluate", "run", "--purifier", "alp", "--attacks", "located")
    assert "expected a purifier's run folder" in _error(capsys, "evaluate", "run", "--purifier", "nowhere")


@pytest.mark.ci_slow
def test_a_purifier_in_integers_before_a_run_and_its_artefact(
    made_run: Path,
    made_artefact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    _json(capsys, *TRAIN, "--codes", "16", "--code-dim", "4", "--adversarial", "0", "--out", "vq")
    body = _json(capsys, "export", "vq", "--bits", "8", "4", "--out", "pure")
    assert [row["artefact"] for row in body["artefacts"]] == ["pure-b8", "pure-b4"]
    assert [row["bits"] for row in body["fidelity"]] == [32, 8, 4]
    assert json.loads(Path("vq/results/integer.json").read_text())["fidelity"] == body["fidelity"]
    manifest = json.loads(Path("pure-b4/manifest.json").read_text())
    assert (manifest["output"]["name"], manifest["output"]["dtype"], manifest["classes"]) == ("drawn", "uint8", [])

    assert _json(capsys, "audit", "pure-b4", "--strict")["integer"]
    behind = ("--purifier", "pure-b8")
    run = _json(capsys, "evaluate", str(made_run), *behind)
    art = _json(capsys, "evaluate", str(made_artefact), *behind)
    assert art["purified_accuracy"] == run["results"][1]["purified_accuracy"]
    assert "--samples 1 for a purifier without noise" in _error(
        capsys, "evaluate", str(made_run), *behind, "--samples", "3"
    )
    assert "draws images" in _error(capsys, "evaluate", "pure-b8", "--data", "signs")
    assert "one of a classifier" in _error(capsys, "evaluate", str(made_run), "--purifier", str(made_artefact))
    assert "got a purifier's; edgeq export" in _error(capsys, "calibrate", "vq", "--out", "other")
    assert "got 32" in _error(capsys, "export", "vq", "--bits", "32", "--out", "other")
    assert "with a purifier's run" in _error(capsys, "export", str(made_run), "--passes", "bias", "--out", "other")


@pytest.mark.ci_slow
def test_a_purifier_in_integers_is_verified_in_every_dialect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _json(capsys, *TRAIN, "--bottleneck", "fsq", "--adversarial", "0", "--out", "fsq")
    for target in ("ort", "proof", "qonnx", "trt"):
        _json(capsys, "export", "fsq", "--bits", "4", "--target", target, "--out", target)
        assert _json(capsys, "verify", target, "--data", DATA[1], "--images", "4")["exact"]
    _json(capsys, *TRAIN, "--kind", "alp", "--latent", "8", "--out", "alp")
    assert "Gaussian noise" in _error(capsys, "export", "alp", "--out", "art")
    assert not Path("art").exists()


@pytest.mark.ci_slow
def test_an_alp_is_trained_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    body = _json(capsys, *TRAIN, "--kind", "alp", "--latent", "8", "--out", "alp")
    assert "randomness" in body["not_exportable"]
    assert _json(capsys, "purify", "evaluate", "alp")["samples"] == 20
    assert "holds a run" in _error(capsys, *TRAIN, "--kind", "alp", "--latent", "8", "--out", "alp")


@pytest.mark.ci_slow
def test_an_autoencoder_is_smoothed_and_both_are_attacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _json(capsys, *TRAIN, "--kind", "vae", "--latent", "4", "--out", "vae")["kind"] == "vae"
    smooth = ["purify", "train", *DATA, "--kind", "srl", "--start", "vae", "--steps", "1", "--out", "srl"]
    assert _json(capsys, *smooth, "--eps", "4", "--free-decoder")["not_exportable"] == ""
    choices = json.loads(Path("srl/config.json").read_text())["purifier"]["method"]
    assert (choices["eps"], choices["frozen_decoder"], choices["network"]["latent"]) == (4.0, False, 4)
    shutil.rmtree("vae")
    quick = ["--against", "latent", "--eps", "16", "--images", "4", "--steps", "1", "--starts", "1"]
    capsys.readouterr()
    assert main(["purify", "evaluate", "srl", *quick]) == 0
    told = capsys.readouterr().err
    body = json.loads(Path("srl/results/purify.json").read_text())["latent"]
    assert (body["images"], set(body["clean"])) == (4, {"start", "srl"})
    assert len(body["rows"]) == 5 * 3
    assert all(words in told for words in ("nightshade", "reconstruction", "start on srl", "worst"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("purify", "expected one of"),
        ("purify polish", "polish"),
        ("purify train --out x --kind alp --codes 8", "--codes, which is one of purevq"),
        ("purify train --out x --fixed-sigma", "--fixed-sigma, which is one of alp"),
        ("purify train --out x --channels 7", "even number"),
        ("purify evaluate nowhere", "got nothing"),
        ("purify evaluate nowhere --bits 4", "--classifier"),
        ("purify evaluate nowhere --against all", "--classifier"),
        ("purify evaluate nowhere --images 1", "2 or more --images"),
        ("purify apply nowhere in out", "got nothing"),
    ],
)
def test_mistakes_are_one_line(args: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words.lower() in _error(capsys, *args.split()).lower()
