import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeq.errors import InputError
from edgeq.export import IntegerGraph, load, save, verify
from edgeq.export.artefact import FILES
from edgeq.export.graph import Conv
from edgeq.export.multiplier import Requant

ALL = {*FILES, "manifest.json"}


@pytest.fixture(scope="module")
def graph(graphs) -> IntegerGraph:
    small = graphs.resnet(4, width=4, blocks=1, size=8)
    return IntegerGraph("tiny", 4, small.nodes, small.edges, tuple("abcdefghij"))


@pytest.fixture
def artefact(graph: IntegerGraph, tmp_path: Path) -> Path:
    return save(graph, path=tmp_path / "art", origin={"run": "runs/1", "seed": 7})


def test_round_trip(graphs, graph: IntegerGraph, artefact: Path) -> None:
    assert {entry.name for entry in artefact.iterdir()} == ALL
    assert [entry.name for entry in artefact.parent.iterdir()] == ["art"]  # no temporary folder left
    loaded = load(artefact)
    images = graphs.images(graph)
    np.testing.assert_array_equal(loaded.graph.run(images), graph.run(images))
    assert loaded.labels == graph.classes
    session = onnxruntime.InferenceSession(str(artefact / "model.onnx"))
    np.testing.assert_array_equal(np.asarray(session.run(None, {"image": images})[0]), graph.run(images))


def test_manifest_says_what_the_numbers_mean(artefact: Path) -> None:
    manifest = json.loads((artefact / "manifest.json").read_text())
    assert (manifest["bits"], manifest["target"], manifest["name"]) == (4, "ort", "tiny")
    assert manifest["input"]["layout"] == "NCHW" and manifest["input"]["channels"] == "RGB"
    assert manifest["input"]["shape"] == ["batch", 3, 8, 8] and manifest["output"]["dtype"] == "int32"
    assert manifest["origin"] == {"run": "runs/1", "seed": 7} and manifest["classes"] == list("abcdefghij")
    assert manifest["files"].keys() == set(FILES)
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (artefact / name).stat().st_size
    assert manifest["weight_bits"]["stem"] == 8 and manifest["weight_bits"]["layer1.0.conv1"] == 4


def test_certificate_is_exact_and_counts(artefact: Path) -> None:
    certificate = json.loads((artefact / "certificate.json").read_text())
    assert certificate["exact"] is True and certificate["mismatches"] == 0 and certificate["codes"] > 10_000
    assert certificate["quick"] is True and certificate["first_divergence"] is None
    claims = {"translation", "weights", "inequality", "int32", "requantizer", "table"}
    assert {proof["claim"] for proof in certificate["proofs"]} == claims
    engines = [run["engine"] for run in certificate["runs"]]
    assert engines[:2] == ["torch", "onnx.reference"] and len(engines) == 10
    assert all(run["version"] for run in certificate["runs"])


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(artefact: Path, name: str) -> None:
    data = bytearray((artefact / name).read_bytes())
    data[len(data) // 2] ^= 1
    (artefact / name).write_bytes(data)
    for read in (load, verify):
        with pytest.raises(InputError, match=rf"{name} with SHA-256 .*damaged") as caught:
            read(artefact)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(artefact: Path, name: str) -> None:
    (artefact / name).unlink()
    with pytest.raises(InputError, match=f"expected the file .*{name}, got none"):
        load(artefact)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an artefact folder with manifest\.json"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"kind": "else", "format": 1}', '{"kind": "edgeq artefact", "format": 9}'])
def test_another_manifest_is_refused(artefact: Path, text: str) -> None:
    (artefact / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="of format 1"):
        load(artefact)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 7}, "other bits or classes"),
        ({"classes": list("jihgfedcba")}, "other bits or classes"),
        ({"classes": 3}, "not iterable"),
        ({"target": 1}, "wrong target"),
        ({"target": "trt"}, "expected the target 'ort' .* got 'trt'"),
        ({"origin": None}, "None is no object"),
        ({"origin": [["run", "runs/1"]]}, "is no object"),
        ({"origin": {"data": 3}}, "3 is no text"),
        ({"versions": 1}, "1 is no object"),
        ({"files": []}, "SHA-256 None"),
        ({"files": {"model.onnx": "x"}}, "SHA-256 None"),
        ({"runtime": {}}, "wrong runtime"),
        ({"rounding": "away from zero"}, "expected the rounding of graph.json"),
        ({"weight_bits": {}}, "expected the weight_bits of graph.json"),
        ({"input": {"channels": "BGR"}}, "expected the input of graph.json"),
        ({"output": {"scale": 123.0}}, "expected the output of graph.json"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(artefact: Path, change: dict[str, object], words: str) -> None:
    file = artefact / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=words):
        load(artefact)


@pytest.mark.parametrize("name", ["input", "output", "rounding", "weight_bits", "runtime"])
def test_a_manifest_that_lacks_something_is_refused(artefact: Path, name: str) -> None:
    file = artefact / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest[name]
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"without or with a wrong '{name}'"):
        load(artefact)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("labels.json", b"5", "expected a list of class names"),
        ("labels.json", b"{", "expected a list of class names"),
        ("labels.json", b"[1, 2]", "expected a list of class names"),
        ("model.onnx", b"no model", "expected an ONNX model, got bytes that are none"),
    ],
)
def test_a_file_that_says_nothing_is_refused(artefact: Path, name: str, data: bytes, words: str) -> None:
    (artefact / name).write_bytes(data)
    file = artefact / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=words):
        verify(artefact)


def test_an_artefact_is_replaced(graphs, artefact: Path) -> None:
    other = graphs.resnet(2, width=4, blocks=1, size=8)
    save(other, path=artefact)
    assert load(artefact).graph.bits == 2
    assert [entry.name for entry in artefact.parent.iterdir()] == ["art"]


def test_an_empty_folder_is_filled(graph: IntegerGraph, tmp_path: Path) -> None:
    (tmp_path / "deep" / "art").mkdir(parents=True)
    assert load(save(graph, path=tmp_path / "deep" / "art")).graph.name == "tiny"


def test_foreign_files_are_never_replaced(graph: IntegerGraph, tmp_path: Path, artefact: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.onnx").write_text("precious")
    (artefact / "notes.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for path, message in [
        (tmp_path / "mine", "'model.onnx'"),
        (artefact, r"'notes\.txt'"),
        (tmp_path / "file", "the file"),
    ]:
        with pytest.raises(InputError, match=message):
            save(graph, path=path)
    assert (tmp_path / "mine" / "model.onnx").read_text() == "precious"
    assert (artefact / "notes.txt").exists() and load(artefact)


def test_unknown_targets_leave_nothing_behind(graph: IntegerGraph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a target of ort"):
        save(graph, path=tmp_path / "art", target="tflite")
    assert not list(tmp_path.iterdir())


def test_an_inexact_network_is_not_saved(graph: IntegerGraph, tmp_path: Path) -> None:
    """A multiplier of 24 bits: float32 loses bits of the product."""
    node = graph.nodes[0]
    assert isinstance(node, Conv) and node.requant is not None
    m = node.requant.m.copy() << 8
    m[0] += 1
    long = Conv(**{**vars(node), "requant": Requant(m, node.requant.n + 8, node.requant.lo, node.requant.hi)})
    with pytest.raises(InputError, match="layer 'stem': inequality fails: channel 0: multiplier") as caught:
        save(IntegerGraph("long", 4, (long, *graph.nodes[1:]), graph.edges), path=tmp_path / "art")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_given_images_are_run_and_must_fit(graphs, graph: IntegerGraph, tmp_path: Path) -> None:
    save(graph, path=tmp_path / "art", inputs=graphs.images(graph, 3))
    assert json.loads((tmp_path / "art" / "certificate.json").read_text())["inputs"]["given"] == 3
    with pytest.raises(InputError, match=r"expected uint8 images of shape \(batch, 3, 8, 8\)"):
        save(graph, path=tmp_path / "other", inputs=np.zeros((2, 3, 9, 9), np.uint8))
    assert not (tmp_path / "other").exists()


def test_export_is_light_to_import() -> None:
    code = "import sys, edgeq.export; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("first", ["import edgeq.export.lower", pytest.param("pass", marks=pytest.mark.ci_slow)])
def test_lower_is_the_function_whatever_was_imported_first(first: str) -> None:
    code = (
        f"{first}\nimport edgeq.export\nfrom edgeq.export import lower, verify\nprint(lower.__name__, verify.__name__)"
    )
    code += "\nassert edgeq.export.lower is lower"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "lower verify\n"
