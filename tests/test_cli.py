import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from edgeq.cli import main
from edgeq.cli.entry import COMMANDS
from edgeq.cli.parse import one_line
from edgeq.files import load_tensors, save_tensors
from edgeq.models import build

DATA = "signs:train=200,test=100"


@pytest.fixture
def here(made_run: Path, made_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_run, tmp_path / "run")
    shutil.copytree(made_artefact, tmp_path / "art")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _json(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    """Run a command that must succeed and return its JSON object."""
    capsys.readouterr()
    code = main([*args, "--json", "-"])
    out, err = capsys.readouterr()
    assert code == 0, err
    body = json.loads(out)
    assert body["command"] == args[0]
    return body


def test_help_names_every_command_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    listed = re.findall(r"^  (\w+)  ", text, re.MULTILINE)
    assert listed == [name for name, _, _ in COMMANDS]


@pytest.mark.parametrize("name", [name for name, _, _ in COMMANDS])
def test_every_command_has_help_with_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"usage: edgeq {name}" in out
    assert "--json FILE" in out
    assert err == ""


def test_help_does_not_load_torch() -> None:
    code = "import sys; from edgeq.cli import main; main(['train', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edgeq 0.")


def test_train_writes_a_run_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = f"train --data {DATA} --bits 32 4 --epochs 1 --batch-size 50 --deployed 0 --out new".split()
    body = _json(capsys, *args)
    assert [row["bits"] for row in body["results"]] == [32, 4]
    assert json.loads((here / "new/results/evaluate.json").read_text())["results"] == body["results"]
    assert (here / "new/weights.safetensors").read_bytes() == (here / "run/weights.safetensors").read_bytes()


@pytest.mark.ci_slow
def test_a_log_gets_one_line_an_epoch(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = f"train --data {DATA} --bits 32 --epochs 2 --batch-size 50 --deployed 0 --out new".split()
    assert main(args) == 0
    assert len(re.findall(r"^epoch \d/2  loss \d.*32b ", capsys.readouterr().err, re.MULTILINE)) == 2


def test_tensorboard_is_an_extra(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = f"train --data {DATA} --bits 32 --epochs 1 --batch-size 50 --deployed 0 --out new --tensorboard".split()
    if find_spec("tensorboard") is None:
        assert main(args) == 2
        assert "edgeq[tensorboard]" in capsys.readouterr().err and not (here / "new").exists()
        return
    assert main(args) == 0
    (events,) = (here / "new/tensorboard").iterdir()
    written = events.read_bytes()
    assert b"loss/ce_32" in written and b"accuracy/32 bits" in written


@pytest.mark.ci_slow
def test_one_of_several_processes_speaks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        patch.setenv("RANK", "1")
        assert main(["evaluate", "run", "--json", "-"]) == 0
        assert capsys.readouterr() == ("", "")
        patch.setenv("RANK", "0")
        assert _json(capsys, "evaluate", "run")["run"] == "run"


def test_a_terminal_gets_a_bar() -> None:
    from rich.console import Console

    from edgeq.cli.talk import Talk
    from edgeq.training import Progress

    screen = io.StringIO()
    talk = Talk()
    talk.console = Console(file=screen, force_terminal=True, width=120)
    with talk.busy("a spinner"):
        pass
    with talk.training() as show:
        show(Progress(0, 2, 1, 9, (32, 4), {"loss": 1.25}))
        show(Progress(0, 2, 0, 9, (32, 4), {"loss": 0.75}, {32: 0.5, 4: 0.25}))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert all(words in text for words in ("a spinner", "epoch 1/2", "loss 0.750", "32b 50.0%", "4b 25.0%"))


def test_a_line_that_changes_is_a_new_one_in_a_log_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeq.cli import talk

    with talk.Talk().line("attacking") as line:
        line.show("too soon")
        line.show("finished", at_once=True)
        line.show("too soon again")
        monkeypatch.setattr(talk, "LOG_SECONDS", 0.0)
        line.show("after a while")
        line.keep("kept")
    assert capsys.readouterr().err.splitlines() == ["finished", "after a while", "kept"]


@pytest.mark.ci_slow
def test_ctrl_c_saves_and_says_how_to_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeq.cli.talk import _InLog

    def interrupt(self: _InLog, progress: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    args = f"train --data {DATA} --bits 32 4 --epochs 1 --batch-size 50 --deployed 0 --out new".split()
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(_InLog, "take", interrupt)
        assert main(args) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"go on with: edgeq {' '.join(args)} --resume")
    assert signal.getsignal(signal.SIGTERM) == before
    assert main([*args, "--resume"]) == 0
    assert (here / "new/weights.safetensors").read_bytes() == (here / "run/weights.safetensors").read_bytes()


def test_evaluate_a_run_keeps_what_it_measured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    four = _json(capsys, "evaluate", "run", "--bits", "4")
    whole = _json(capsys, "evaluate", "run")
    assert [row["bits"] for row in whole["results"]] == [32, 4]
    assert whole["results"][1] == four["results"][0]
    assert all(row["total"] == 100 for row in whole["results"])


@pytest.mark.ci_slow
def test_the_artefact_equals_the_network_on_every_test_image(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulated = _json(capsys, "evaluate", "run", "--bits", "4")["results"][0]
    integer = _json(capsys, "evaluate", "art", "--against", "run")
    assert (integer["codes"], integer["mismatches"], integer["equal"]) == (1000, 0, True)
    assert integer["correct"] == simulated["correct"]
    assert len(list((here / "run/results").glob("integer-*.json"))) == 1


@pytest.mark.ci_slow
def test_export_several_widths(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _json(capsys, "calibrate", "run", "--bits", "32", "8", "2", "--images", "20", "--out", "wide")
    body = _json(capsys, "export", "wide", "--bits", "8", "2", "--out", "int")
    assert [row["artefact"] for row in body["artefacts"]] == ["int-b8", "int-b2"]
    assert body["artefacts"][0]["size_bytes"] > 2 * body["artefacts"][1]["size_bytes"]
    manifest = json.loads((here / "int-b2/manifest.json").read_text())
    assert manifest["origin"]["run"] == "../wide"
    assert manifest["origin"]["data"] == DATA


def test_export_all_widths_by_default(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = _json(capsys, "export", "run", "--out", "int")
    assert [row["artefact"] for row in body["artefacts"]] == ["int"]
    assert (here / "int/model.onnx").read_bytes() == (here / "art/model.onnx").read_bytes()


def test_verify_writes_the_certificate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = _json(capsys, "verify", "art", "--data", DATA, "--images", "2")
    assert body["exact"] is True
    assert body["inputs"]["given"] == 2
    assert body["mismatches"] == 0


def test_bench_measures_and_keeps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "art", "--seconds", "0.05", "--attempts", "1", "--limit", "100", "--threads", "1", "0"]
    body = _json(capsys, *args, "--data", DATA)
    assert [row["threads"] for row in body["rows"]] == [1, 0]
    assert all(0 < row["min_ms"] <= row["p50_ms"] <= row["p99_ms"] for row in body["rows"])
    assert body["rows"][0]["accuracy"] is not None
    (kept,) = (here / "run/results").glob("bench-*.json")
    assert json.loads(kept.read_text())["rows"] == body["rows"]


def test_a_noisy_bench_is_refused_but_its_figures_are_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "art", "--seconds", "0.02", "--attempts", "1", "--limit", "1e-9", "--json", "b.json"]
    assert main(args) == 2
    assert "too noisy" in capsys.readouterr().err
    assert json.loads((here / "b.json").read_text())["noisy"]
    assert not list((here / "run/results").glob("bench-*.json"))


def test_report_of_a_run_and_its_artefact(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _json(capsys, "evaluate", "run")
    body = _json(capsys, "report", "run", "art", "--out", "page.html")
    assert body["networks"] == [{"network": "run", "widths": [32, 4]}]
    assert (here / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.ci_slow
@pytest.mark.parametrize("method", [pytest.param("minmax", marks=pytest.mark.ci_slow), "mse"])
def test_calibrate_float_weights(method: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_tensors(here / "float.safetensors", build("resnet8", classes=10).state_dict())
    args = f"calibrate --model resnet8 --weights float.safetensors --data {DATA} --bits 32 8 --images 20 --out new"
    body = _json(capsys, *args.split(), "--method", method, "--mean", "0.5", "0.4", "0.3", "--std", "0.2")
    assert json.loads((here / "new/config.json").read_text())["pixels"] == {"mean": [0.5, 0.4, 0.3], "std": [0.2]}
    assert body["bits"] == [8]
    assert [row["bits"] for row in body["results"]] == [32, 8]
    assert _json(capsys, "export", "new", "--bits", "8", "--out", "int")["artefacts"][0]["exact"] is True


def test_calibrate_leaves_the_run_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "run/weights.safetensors").read_bytes()
    body = _json(capsys, "calibrate", "run", "--images", "20", "--sequential", "--out", "new")
    assert body["sequential"] is True
    assert (here / "run/weights.safetensors").read_bytes() == before
    assert json.loads((here / "new/config.json").read_text())["training"]["calibrated"]["run"] == "run"


def test_calibrate_with_one_step_a_layer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, "calibrate", "run", "--images", "20", "--per-tensor", "--out", "new")["per_tensor"] is True
    steps = {k: v for k, v in load_tensors(here / "new/weights.safetensors").items() if k.endswith("weight_steps.4")}
    assert len(steps) > 5 and all(bool((step == step.flatten()[0]).all()) for step in steps.values())
    assert _json(capsys, "export", "new", "--bits", "4", "--out", "int")["artefacts"][0]["exact"] is True


def test_calibrate_with_passes_says_what_each_did(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = _json(capsys, "calibrate", "run", "--images", "20", "--passes", "bias", "equalise", "--out", "new")
    assert [(entry["pass"], entry["bits"]) for entry in body["passes"]] == [("equalise", 4), ("bias", 4)]
    first, second = body["passes"]
    assert second["sqnr_db_before"] == first["sqnr_db_after"] != first["sqnr_db_before"]
    assert _json(capsys, "export", "new", "--bits", "4", "--out", "int")["artefacts"][0]["exact"] is True


def test_json_goes_into_a_file(here: Path) -> None:
    assert main(["evaluate", "run", "--json", "deep/er/out.json"]) == 0
    assert json.loads((here / "deep/er/out.json").read_text())["run"] == "run"


def test_an_unexpected_error_keeps_its_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("our own fault")

    monkeypatch.setattr("edgeq.runs.load_run", broken)
    with pytest.raises(RuntimeError, match="our own fault"):
        main(["evaluate", "run"])


def test_warnings_of_others_stay_away_and_ours_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from edgeq.cli import entry

    with entry.quiet():
        warnings.warn("from a test, which is not edgeq", stacklevel=1)
        warnings.warn_explicit("two\nlines", UserWarning, str(Path(entry.PACKAGE) / "data/folder.py"), 1)
    assert capsys.readouterr().err == "edgeq: note: two lines\n"


@pytest.mark.ci_slow
def test_a_reader_that_has_gone_is_not_an_error_message(here: Path) -> None:
    code = "import sys; from edgeq.cli import main; sys.exit(main())"
    reading, writing = os.pipe()
    os.close(reading)
    args = [sys.executable, "-c", code, "report", "run", "--json", "-"]
    done = subprocess.run(args, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, cwd=here)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr.splitlines()[-1] == "wrote report.html"  # on a busy machine a spinner came before


@pytest.mark.parametrize(
    ("boxed", "line"),
    [
        ("╭─ A ─╮\n│ one  │\n│ two. │\n│ ──── │\n│ help │\n╰──────╯\n", "one two"),
        ("plain text\n", "plain text"),
        ("", "the arguments are not understood"),
    ],
)
def test_a_box_becomes_a_line(boxed: str, line: str) -> None:
    assert one_line(boxed) == line
