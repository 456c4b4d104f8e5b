"""Mistakes of the user: one line on stderr, exit code 2, and nothing written."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from edgeq import runs
from edgeq.cli import main
from edgeq.files import load_tensors, save_tensors
from edgeq.purifiers import ALP, PurifierConfig, PurifierInfo
from edgeq.purifiers.folders import save_weights, write_info
from edgeq.quant.network import QuantConfig

DATA = "signs:train=200,test=100"  # of made_run, too


Prepare = Callable[[Path], None]


def _nothing(_: Path) -> None:
    pass


def _classes(here: Path, *, names: tuple[str, ...] = ("a", "b"), empty: str = "", damaged: bool = False) -> None:
    for split in ("train", "test"):
        for name in names:
            folder = here / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(4) if name != empty else ():
                Image.new("RGB", (16, 16), (index, 0, 0)).save(folder / f"{index}.png")
    if damaged:
        (here / "images/train/a/0.png").write_bytes(b"no image")


def _text(path: str, text: str) -> Prepare:
    def write(here: Path) -> None:
        (here / path).parent.mkdir(exist_ok=True)
        (here / path).write_text(text)

    return write


def _remove(path: str) -> Prepare:
    return lambda here: (here / path).unlink()


def _cut(path: str) -> Prepare:
    def cut(here: Path) -> None:
        (here / path).write_bytes((here / path).read_bytes()[:-100])

    return cut


def _edit(path: str, **changes: object) -> Prepare:
    def edit(here: Path) -> None:
        body = json.loads((here / path).read_text())
        for name, value in changes.items():
            if value is None:
                del body[name]
            else:
                body[name] = value
        (here / path).write_text(json.dumps(body))

    return edit


def _fill(path: str) -> Prepare:
    def fill(here: Path) -> None:
        (here / path).mkdir()
        (here / path / "letter.txt").write_text("mine")

    return fill


def _tensor(name: str, value: float) -> Prepare:
    def spoil(here: Path) -> None:
        tensors = load_tensors(here / "run/weights.safetensors")
        tensors[name].view(-1)[-1] = value
        save_tensors(here / "run/weights.safetensors", tensors)

    return spoil


def _unfinished(metrics: str) -> Prepare:
    def cut(here: Path) -> None:
        (here / "run/weights.safetensors").unlink()
        (here / "run/metrics.jsonl").write_text(metrics)

    return cut


def _weights(shape: tuple[int, ...]) -> Prepare:
    return lambda here: save_tensors(here / "float.safetensors", {"conv.weight": torch.zeros(shape)})


def _wide(other: str) -> Prepare:
    def widen(here: Path) -> None:
        info = replace(runs.read_info(here / "run"), quant=QuantConfig(bits=(8, 4)))
        runs.write_info(here / "run", info)
        runs.save_weights(here / "run", runs.new_network(info))
        _fill(other)(here)

    return widen


def _purifier(here: Path) -> None:
    config = PurifierConfig(ALP(channels=2, blocks=0, latent=1))
    write_info(here / "alp", PurifierInfo(config, (3, 16, 16)))
    save_weights(here / "alp", config.method.build((3, 16, 16), 2))


NAN, INF = float("nan"), float("inf")
VARIANCE = "units.conv.norm.norms.4.running_var"
ODD_METRICS = '{"epoch": 0, "accuracy": {"9": 0.5}}'
TRAIN = f"train --data {DATA} --out new"
RESUME = f"train --data {DATA} --out run --resume --bits 32 4 --epochs 1 --batch-size 50 --deployed 0"  # made_run's
SMOOTH = f"purify train --kind srl --data {DATA} --out new"
BARE = f"calibrate --model resnet8 --data {DATA} --weights float.safetensors --out new"
PTQ = f"{BARE} --mean 0.5 --std 0.25"

CASES: tuple[tuple[str, str, Prepare, str], ...] = (
    ("no command", "", _nothing, "expected a command"),
    ("unknown command", "trian --out new", _nothing, "'trian'"),
    ("audit of nothing", "audit nowhere", _nothing, "an artefact folder or an ONNX file"),
    ("unknown flag", f"{TRAIN} --epoch 3", _nothing, "--epoch"),
    ("flag without value", f"{TRAIN} --model", _nothing, "--model"),
    ("missing flag", "train --data signs", _nothing, "--out"),
    ("missing folder", "evaluate", _nothing, "RUN"),
    ("not a number", f"{TRAIN} --epochs many", _nothing, "--epochs"),
    ("not a choice", f"{TRAIN} --schedule linear", _nothing, "'linear'"),
    ("unknown data", "train --data sings --out new", _nothing, "'sings'"),
    ("wrong count", "train --data signs:train=0 --out new", _nothing, "train=0"),
    ("no data folder", "train --data folder:none --out new", _nothing, "none"),
    ("no CIFAR-10", "train --data cifar10:none --out new", _nothing, "cifar-10-python.tar.gz"),
    ("empty class", "train --data folder:images --out new", lambda here: _classes(here, empty="b"), "images"),
    ("damaged image", "train --data folder:images --out new", lambda here: _classes(here, damaged=True), "0.png"),
    ("unknown model", f"{TRAIN} --model resnet9", _nothing, "'resnet9'"),
    ("unknown torchvision model", f"{TRAIN} --model torchvision/resnet9", _nothing, "'resnet9'"),
    ("no such factory", f"{TRAIN} --model no.such:thing", _nothing, "no.such:thing"),
    ("a model that is a module", f"{TRAIN} --model os:path", _nothing, "os:path"),
    ("a model of other arguments", f"{TRAIN} --model torch.nn:Linear", _nothing, "in_features"),
    ("a model without a module", f"{TRAIN} --model :thing", _nothing, "package.module:factory"),
    ("model that needs other images", f"{TRAIN} --model torchvision/vit_b_16", _nothing, "expected"),
    ("unknown defence", f"{TRAIN} --defense magic", _nothing, "'magic'"),
    ("patches on no image", f"{TRAIN} --defense patch-at --rho 0", _nothing, "rho"),
    ("patches larger than the images", f"{TRAIN} --defense patch-at --patch-sizes 6 40", _nothing, "got 40"),
    ("a pool and one epoch", f"{TRAIN} --defense triqdef --epochs 1", _nothing, "at least 2 epochs"),
    ("a pool from nowhere", f"{TRAIN} --defense triqdef --pool-from nowhere", _nothing, "nowhere"),
    ("unknown tap", f"{TRAIN} --defense triqdef --taps layer7", _nothing, "layer7"),
    ("negative penalty", f"{TRAIN} --defense triqdef --lambda-fdp -1", _nothing, "lambda_fdp"),
    ("no part in the penalties", f"{TRAIN} --defense triqdef --alpha 0 --beta 0", _nothing, "alpha"),
    ("a penalty that is no number", f"{TRAIN} --defense triqdef --epochs 2 --alpha nan", _nothing, "nan"),
    ("an infinite penalty", f"{TRAIN} --defense triqdef --epochs 2 --beta inf", _nothing, "inf"),
    ("a seed beyond torch's", f"{TRAIN} --seed 99999999999999999999999", _nothing, "99999999999999999999999"),
    ("several widths with pbat", f"{TRAIN} --defense pbat", _nothing, "one width"),
    ("distillation elsewhere", f"{TRAIN} --defense dwq --distill 0.5", _nothing, "--distill with --defense standard"),
    ("penalties without their defence", f"{TRAIN} --lambda-fdp 3", _nothing, "--lambda-fdp with --defense triqdef"),
    ("patches without a defence", f"{TRAIN} --online 1", _nothing, "patch-at or triqdef or pbat"),
    ("no stages to set", f"{TRAIN} --no-curriculum --alone 0.5", _nothing, "--alone with --no-curriculum"),
    ("passes where nothing takes turns", f"{TRAIN} --widths-per-step 3 --passes 5", _nothing, "take turns"),
    (
        "nothing to compare",
        f"{TRAIN} --defense triqdef --epochs 2 --excess --batch-size 4",
        _nothing,
        "2 or more patched images",
    ),
    ("distillation in turns", f"{TRAIN} --distill 0.5", _nothing, "take turns"),
    ("fewer than no passes", f"{TRAIN} --passes -1", _nothing, "0 or more passes"),
    ("width 1", f"{TRAIN} --bits 32 1", _nothing, "[32, 1]"),
    ("no width", f"{TRAIN} --bits", _nothing, "[]"),
    ("width twice", f"{TRAIN} --bits 8 8", _nothing, "[8, 8]"),
    ("no epochs", f"{TRAIN} --epochs 0", _nothing, "0"),
    ("negative rate", f"{TRAIN} --lr -1", _nothing, "-1"),
    ("edge bits 9", f"{TRAIN} --edge-bits 9", _nothing, "9"),
    ("batch larger than needed", f"{TRAIN} --batch-size 1", _nothing, "batches"),
    ("no GPU", f"{TRAIN} --device cuda", _nothing, "CUDA"),
    ("out is not a run", f"train --data {DATA} --out box", _fill("box"), "box"),
    ("out is a run", f"train --data {DATA} --out run", _nothing, "run"),
    ("resume with other choices", f"train --data {DATA} --out run --resume --lr 0.7", _nothing, "resume"),
    ("json into a folder", f"{TRAIN} --json run", _nothing, "--json"),
    ("json below a file", f"{TRAIN} --json run/config.json/x.json", _nothing, "--json"),
    ("no run", "evaluate nowhere", _nothing, "nowhere"),
    ("a folder that is no run", "evaluate box", _fill("box"), "config.json"),
    ("width that the run has not", "evaluate run --bits 8", _nothing, "[32, 4]"),
    ("data with other classes", "evaluate run --data folder:images", _classes, "10 classes"),
    ("run with damaged config", "evaluate run", _text("run/config.json", "{"), "config.json"),
    ("run without a field", "evaluate run", _edit("run/config.json", quant=None), "quant"),
    ("run of another format", "evaluate run", _edit("run/config.json", format=99), "99"),
    ("run with a list as quant", "evaluate run", _edit("run/config.json", quant=[32, 4]), "quant as an object"),
    ("run with odd widths", "evaluate run", _edit("run/config.json", quant={"bits": [32.0, 4]}), "whole numbers"),
    ("run with a number as model", "evaluate run", _edit("run/config.json", model=8), "model as a text, got 8"),
    ("run with a number as data", "evaluate run", _edit("run/config.json", data=3), "data as a text, got 3"),
    ("run with a text as classes", "evaluate run", _edit("run/config.json", classes="stop"), "classes as a list"),
    ("run with numbers as classes", "evaluate run", _edit("run/config.json", classes=[1, 2]), "[1, 2]"),
    ("run with a flat image", "evaluate run", _edit("run/config.json", image_shape=[3, 0, 32]), "[3, 0, 32]"),
    (
        "run with a list as training",
        "export run --out new",
        _edit("run/config.json", training=[]),
        "training as an object",
    ),
    (
        "report of such a run",
        "report run --out new",
        _edit("run/config.json", training="none"),
        "training as an object",
    ),
    (
        "resume of such a run",
        f"train --data {DATA} --out run --resume",
        _edit("run/config.json", training=7),
        "training as an object",
    ),
    ("report of a run of version 1", "report run --out new", _edit("run/config.json", versions=1), "versions"),
    ("run with NaN weights", "evaluate run", _tensor("units.conv.weight", NAN), "'units.conv.weight'"),
    (
        "run with an infinite step",
        "export run --out new",
        _tensor("grids.conv.steps.4", -INF),
        "'grids.conv.steps.4'",
    ),
    ("run with negative variances", "export run --out new", _tensor(VARIANCE, -1.0), f"0 or more in '{VARIANCE}'"),
    ("damaged evaluation", "evaluate run", _text("run/results/evaluate.json", "{}"), "evaluate.json"),
    ("report of one", "report run --out new", _text("run/results/evaluate.json", '{"results": [{}]}'), "evaluate.json"),
    ("resume with damaged metrics", RESUME, _unfinished('{"epoch": 0'), "metrics.jsonl"),
    ("resume with other metrics", RESUME, _unfinished("[]"), "line 1"),
    ("run with another network", "evaluate run", _edit("run/config.json", model="resnet20"), "weights.safetensors"),
    ("run with cut weights", "evaluate run", _cut("run/weights.safetensors"), "weights.safetensors"),
    ("run without weights", "export run --out new", _remove("run/weights.safetensors"), "weights.safetensors"),
    ("float width exported", "export run --bits 32 --out new", _nothing, "32"),
    ("unknown target", "export run --bits 4 --target magic --out new", _nothing, "'magic'"),
    ("export over other files", "export run --bits 4 --out box", _fill("box"), "box"),
    ("export over other files at one width", "export run --out box", _wide("box-b4"), "box-b4"),
    ("export without a name", "export run --out .", _wide("box"), "--out art"),
    ("no artefact", "verify run", _nothing, "manifest.json"),
    ("artefact without model", "verify art", _remove("art/model.onnx"), "model.onnx"),
    ("artefact with changed model", "verify art", _cut("art/model.onnx"), "SHA-256"),
    ("artefact with changed labels", "bench art", _text("art/labels.json", "[]"), "SHA-256"),
    ("artefact with changed certificate", "report art --out new", _text("art/certificate.json", "{}"), "SHA-256"),
    ("manifest with other bits", "verify art", _edit("art/manifest.json", bits=2), "other bits"),
    ("manifest without target", "verify art", _edit("art/manifest.json", target=None), "target"),
    ("manifest with another target", "verify art", _edit("art/manifest.json", target="trt"), "'trt'"),
    ("manifest of odd data", "evaluate art", _edit("art/manifest.json", origin={"data": 3}), "3 is no text"),
    ("manifest without hashes", "verify art", _edit("art/manifest.json", files={}), "SHA-256"),
    ("manifest of another format", "verify art", _edit("art/manifest.json", format=99), "format"),
    ("no images to verify with", "verify art --images 0", _nothing, "0"),
    ("nothing to bench", "bench", _nothing, "artefact"),
    ("the same artefact twice", "bench art art", _nothing, "twice"),
    ("unknown engine", "bench art --engines magic", _nothing, "'magic'"),
    ("negative threads", "bench art --threads -1", _nothing, "-1"),
    ("no time", "bench art --seconds 0", _nothing, "seconds"),
    ("any noise", "bench art --limit inf", _nothing, "finite limit"),
    ("negative seed of a benchmark", "bench art --seed -1", _nothing, "seed of 0 or more"),
    ("widths of an artefact", "evaluate art --bits 4", _nothing, "--bits"),
    ("transfer of nothing", "transfer nowhere", _nothing, "nowhere"),
    ("transfer of an artefact", "transfer art", _nothing, "config.json"),
    ("unknown attack", "transfer run --attacks magic", _nothing, "'magic'"),
    ("attack twice", "evaluate run --attacks gap gap", _nothing, "each once"),
    ("unknown surrogate", "transfer run --surrogates magic", _nothing, "'magic'"),
    ("patch without pixels", "transfer run --sizes 0", _nothing, "[0]"),
    ("patch larger than the image", "transfer run --sizes 6 40", _nothing, "[40]"),
    ("target that is no class", "transfer run --towards 10", _nothing, "[10]"),
    ("one image to attack", "transfer run --images 1", _nothing, "1"),
    ("width to attack that the run has not", "transfer run --bits 8", _nothing, "[32, 4]"),
    ("unknown effort", "transfer run --effort magic", _nothing, "'magic'"),
    ("black box on nothing", "transfer run --attacks patch-mono --surrogates joint", _nothing, "black boxes"),
    ("quick without attacks", "evaluate run --quick", _nothing, "--attacks"),
    ("attacks on an artefact", "evaluate art --attacks gap", _nothing, "--attacks"),
    ("smoothing without a start", f"{SMOOTH}", _nothing, "--start RUN with --kind srl"),
    ("smoothing of nothing", f"{SMOOTH} --start nowhere", _nothing, "nowhere, got nothing"),
    ("smoothing of a classifier", f"{SMOOTH} --start run", _nothing, "a purifier's run in run"),
    ("smoothing of another purifier", f"{SMOOTH} --start alp", _purifier, "kind vae in alp, got one of alp"),
    ("the network of a smoothing", f"{SMOOTH} --start run --channels 8", _nothing, "--channels, which is one of"),
    (
        "a start of another kind",
        "purify train --kind vae --start run --out new",
        _nothing,
        "--start, which is one of srl",
    ),
    (
        "a free decoder elsewhere",
        "purify train --free-decoder --out new",
        _nothing,
        "--free-decoder, which is one of srl",
    ),
    (
        "latents of another purifier",
        "purify evaluate alp --against latent",
        _purifier,
        "kind vae or srl with --against",
    ),
    (
        "latents beside other attacks",
        "purify evaluate alp --against latent square --classifier run",
        _purifier,
        "--against latent alone",
    ),
    ("poisons for nobody", "poison make --out new", _nothing, "expected a run folder"),
    ("poisons of nothing", "poison make nowhere --out new", _nothing, "nowhere"),
    ("unknown poison", "poison make run --attack magic --out new", _nothing, "'magic'"),
    ("poisons without a budget", f"poison make run --data {DATA} --eps 0 --out new", _nothing, "eps from 1 to 255"),
    ("no poisons", f"poison make run --data {DATA} --poisons 0 --out new", _nothing, "got 0"),
    ("no steps towards poisons", f"poison make run --data {DATA} --steps 0 --out new", _nothing, "steps of 1"),
    (
        "a transfer set for a trigger",
        f"poison make run --attack narcissus --per-class 5 --data {DATA} --out new",
        _nothing,
        "--per-class",
    ),
    (
        "a trigger for no class",
        f"poison make run --attack narcissus --target 10 --data {DATA} --out new",
        _nothing,
        "below 10, got 10",
    ),
    ("poisons over other files", f"poison make run --data {DATA} --poisons 2 --out box", _fill("box"), "box"),
    ("unknown arm", f"poison run run --arms magic --data {DATA} --out new", _nothing, "'magic'"),
    ("no targets", f"poison run run --targets 0 --data {DATA} --out new", _nothing, "at least one target"),
    ("a plan over other files", f"poison run run --data {DATA} --out box", _fill("box"), "box"),
    ("poisoned data from nowhere", "train --data poisoned:none --out new", _nothing, "poison.json in none"),
    ("poisoned data without a name", "train --data poisoned: --out new", _nothing, "poisoned:PATH"),
    ("nothing to report", "report --out new", _nothing, "expected run or artefact folders"),
    ("a plan into a file", "sensitivity run --search --budget-bits 4 --out box/a/m.toml", _text("box", "x"), "--out"),
    ("report into a folder", "report run --out box", _fill("box"), "box"),
    ("results that are no results", "report run --out new --results list.json", _text("list.json", "[]"), "list.json"),
    ("metrics without epochs", "report run --out new", _text("run/metrics.jsonl", "3\n"), "line 1"),
    ("metrics of odd widths", "report run --out new", _text("run/metrics.jsonl", ODD_METRICS), "'9'"),
    ("damaged metrics", "report run --out new", _text("run/metrics.jsonl", "{\n"), "metrics.jsonl"),
    ("nothing to calibrate", "calibrate --out new", _nothing, "expected a run"),
    ("run and weights", "calibrate run --model resnet8 --out new", _nothing, "both"),
    ("unknown method", "calibrate run --method magic --out new", _nothing, "'magic'"),
    ("calibrate over other files", "calibrate run --out box", _fill("box"), "box"),
    ("weights without what they see", BARE, _weights((3, 3)), "expected --mean and --std"),
    ("weights that see nothing", f"{BARE} --mean 0 --std 0", _nothing, "positive standard deviations"),
    ("weights that see two channels", f"{BARE} --mean 0 1 --std 1", _nothing, "one for each of 3 channels"),
    ("a run that knows its pixels", "calibrate run --mean 0 --out new", _nothing, "both; drop one of them"),
    ("weights of another network", PTQ, _weights((3, 3)), "float.safetensors"),
    ("weights that are no safetensors", PTQ, _text("float.safetensors", "pickle"), "float.safetensors"),
    ("demo over other files", "demo --out box", _fill("box"), "box"),
    ("demo over a file", "demo --out list.json", _text("list.json", "[]"), "list.json"),
)


def _listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("args", "prepare", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_mistake_is_one_line_and_leaves_nothing(
    args: str,
    prepare: Prepare,
    words: str,
    made_run: Path,
    made_artefact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if args.endswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    shutil.copytree(made_run, tmp_path / "run")
    shutil.copytree(made_artefact, tmp_path / "art")
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = _listing(tmp_path)
    capsys.readouterr()

    code = main(args.split())

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("edgeq: ")
    assert words in lines[0]
    assert "Traceback" not in err
    assert out == ""
    assert _listing(tmp_path) == before
