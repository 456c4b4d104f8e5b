"""The layout: one package, two linked folders, a fast import, and shape checks that really fire in the tests."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgeq

CHECKOUT = Path(__file__).parents[1]
in_checkout = pytest.mark.skipif(not (CHECKOUT / "edgeq").exists(), reason="these tests run away from the checkout")


def run_python(code: str, *, folder: Path) -> str:
    """Run `code` in a new interpreter, as a user's first lines would be."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_version_is_that_of_the_installed_package() -> None:
    assert edgeq.__version__ == importlib.metadata.version("edgeq")


def test_importing_edgeq_loads_no_heavy_package(tmp_path: Path) -> None:
    code = "import sys, edgeq; print(sorted({'torch', 'numpy', 'onnx', 'matplotlib'} & set(sys.modules)))"
    assert run_python(code, folder=tmp_path) == "[]"


def test_every_public_name_is_there() -> None:
    assert set(edgeq.__all__) <= set(dir(edgeq))
    for name in edgeq.__all__:
        assert getattr(edgeq, name) is not None


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'multibits'; it has .*multibit"):
        getattr(edgeq, "multibits")  # noqa: B009  the checker must not see the wrong name


@pytest.mark.parametrize("part", ["export", "calib"])
def test_the_linked_folders_are_imported_under_edgeq_only(part: str, tmp_path: Path) -> None:
    assert importlib.import_module(f"edgeq.{part}").__name__ == f"edgeq.{part}"
    code = f"import importlib.util as u; print(u.find_spec('edgeq.{part}') is None, u.find_spec('{part}') is None)"
    assert run_python(code, folder=tmp_path) == "False True"


@in_checkout
@pytest.mark.parametrize("part", ["export", "calib"])
def test_the_links_are_relative(part: str) -> None:
    assert os.readlink(CHECKOUT / "edgeq" / part) == f"../{part}"


def test_wrong_shapes_and_types_are_refused_in_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "from jaxtyping import Float\n"
        "from torch import Tensor\n"
        'def add(a: Float[Tensor, " n"], b: Float[Tensor, " n"], *, times: int = 1) -> Float[Tensor, " n"]:\n'
        "    return (a + b) * times if times else a[:1]\n"
    )
    import torch
    from jaxtyping import TypeCheckError

    monkeypatch.setattr(edgeq, "__path__", [*edgeq.__path__, str(tmp_path)])
    try:
        add = importlib.import_module("edgeq.planted").add
    finally:
        sys.modules.pop("edgeq.planted", None)
    assert add(torch.ones(3), torch.ones(3)).tolist() == [2, 2, 2]
    for wrong in (
        lambda: add(torch.ones(3), torch.ones(4)),
        lambda: add(torch.ones(3), torch.ones(3, dtype=torch.int32)),
        lambda: add(torch.ones(3), torch.ones(3), times="1"),
        lambda: add(torch.ones(3), torch.ones(3), times=0),
    ):
        with pytest.raises(TypeCheckError):
            wrong()


@in_checkout
@pytest.mark.parametrize("part", ["export", "calib"])
def test_the_linked_folders_do_not_import_themselves_by_their_bare_name(part: str) -> None:
    """The linter cannot tell `from .graph import` from `from export.graph import` in there, so this test does."""
    bare = re.compile(r"^\s*(?:import|from)\s+(?:export|calib)\b", re.MULTILINE)
    assert bare.search("    from export import graph")
    wrong = [str(file) for file in (CHECKOUT / part).rglob("*.py") if bare.search(file.read_text())]
    assert wrong == []
