"""The notebooks run from top to bottom. They belong to the checkout; away from it there is nothing to test."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def _cells(path: Path) -> list[str]:
    body = json.loads(path.read_text())
    return ["".join(cell["source"]) for cell in body["cells"] if cell["cell_type"] == "code"]


@pytest.mark.ci_slow
@pytest.mark.skipif(not NOTEBOOKS.is_dir(), reason="the notebooks are in the checkout only")
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for source in _cells(NOTEBOOKS / "tour.ipynb"):
        source = source.replace("signs:train=1000,test=500", "signs:train=200,test=60").replace(
            "EPOCHS = 6", "EPOCHS = 1"
        )
        exec(compile(source, "tour.ipynb", "exec"), space)
    said = capsys.readouterr().out
    assert said.count("True") >= 9 and "exact: True" in said
    assert "equal to the interpreter: True" in said and "equal to the network: True" in said
