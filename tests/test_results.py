"""The tables of docs/results.md are what the files beside it say. They belong to the checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the results are in the checkout only")
def test_the_tables_are_what_the_measurements_say() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/render_results.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
