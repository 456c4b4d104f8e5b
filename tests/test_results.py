"""The tables of docs/results.md are what the files beside it say. They belong to the checkout."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the results are in the checkout only")
def test_the_tables_are_what_the_measurements_say() -> None:
    render = runpy.run_path(str(ROOT / "benchmarks/render_results.py"))["render"]
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert render(page, ROOT / "docs/results") == page, "run python benchmarks/render_results.py"
