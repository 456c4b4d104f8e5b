"""The export's tests with the oldest and with the newest supported onnx and onnxruntime."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("onnx", "onnxruntime")
TESTS = ("test_guards.py", "test_verify.py", "test_audit.py", "dialects/test_ort.py", "dialects/test_proof.py")
TESTS += ("dialects/test_trt.py", "dialects/test_qonnx.py", "importers/test_qdq.py")


def oldest() -> list[str]:
    """Return what pyproject.toml names as the oldest versions."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = dict(re.findall(r'"(\w+)>=([0-9.]+)"', text))
    return [f"{name}=={found[name]}" for name in PACKAGES]


def test_the_oldest_versions_are_stated_where_users_look() -> None:
    page = ROOT / "docs" / "install.md"
    if not page.exists():
        pytest.skip("the docs are in the checkout only")
    text = page.read_text(encoding="utf-8")
    for requirement in oldest():
        name, version = requirement.split("==")
        assert f"{name} {version}" in text, f"docs/install.md does not state {name} {version}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_the_export_is_exact_at_both_ends(tmp_path: Path, end: str) -> None:
    """Their packages are put before those of this environment; everything else is shared."""
    wanted = oldest() if end == "oldest" else list(PACKAGES)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot install {' '.join(wanted)}: {done.stderr.strip().splitlines()[-1]}")
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    asked = "import onnx, onnxruntime; print(onnx.__file__, onnxruntime.__file__)"
    files = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert files.stdout.count(str(tmp_path)) == 2, files.stdout
    tests = [str(Path(__file__).parent / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
