import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgeq.report import Network, Row, collect, render
from edgeq.report.figures import curves, latencies, pareto

LATENCY = {"p50_ms": 0.5, "p99_ms": 0.9, "low_ms": 0.49, "high_ms": 0.51, "noise": 0.02, "threads": 1, "batch": 1}
CERTIFICATE = {
    "exact": True,
    "codes": 1234567,
    "mismatches": 0,
    "proofs": [{"layer": "conv", "claim": "int32", "cases": 16, "exact": True}],
    "runs": [{"engine": "onnxruntime:all:logits"}],
    "needs_vnni": ["conv"],
}
ROWS = (
    Row(32, simulated=0.97, size_bytes=310824),
    Row(8, simulated=0.96, integer=0.96, size_bytes=82649, latency=LATENCY, certificate=CERTIFICATE, equal=True),
    Row(2, simulated=0.93, integer=0.93, size_bytes=26002, latency=LATENCY, certificate=CERTIFICATE, equal=True),
)
METRICS = tuple({"epoch": e, "accuracy": {"32": 0.5 + e / 10, "2": 0.3 + e / 10}} for e in range(4))
NETWORK = Network("runs/x", "resnet8", "signs", ROWS, metrics=METRICS, training={"lr": 0.1}, versions={"torch": "2"})


class _Balance(HTMLParser):
    """Count what is opened and not closed."""

    VOID = frozenset({"meta", "br", "link", "img", "use", "path", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone() -> None:
    page = render([NETWORK], title="a title")
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<svg") == 3
    # namespaces are names, not addresses; nothing else may point outside
    links = set(re.findall(r"https?://[^\"'<> )]+", page))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)


def test_the_page_says_what_was_found() -> None:
    page = render([NETWORK])
    for words in ("97.00 %", "82 649", "1 234 567", "0.500", "2 of 2", "fewer bits buy file size", "without VNNI"):
        assert words in page.lower() or words in page


def test_the_same_input_gives_the_same_page() -> None:
    assert render([NETWORK]) == render([NETWORK])


def test_text_from_outside_is_escaped() -> None:
    nasty = Network("<b>&", "<script>alert(1)</script>", "folder:a&b", ROWS, training={"<i>": "<u>"})
    page = render([nasty], title="<h1>")
    assert "<script>" not in page
    assert "<i>" not in page and "<u>" not in page


def test_an_inexact_or_unequal_model_is_not_called_exact() -> None:
    assert Row(8, certificate={**CERTIFICATE, "exact": False}).exact is False
    assert Row(8, certificate=CERTIFICATE, equal=False).exact is False
    assert Row(8, certificate=CERTIFICATE).exact is True
    assert Row(8).exact is None
    assert [Row(32).name, Row(4).name, Row(4, mixed=True).name] == ["32 (float)", "4", "4 (mixed)"]
    assert "NO" in render([Network("x", "m", "d", (Row(8, certificate=CERTIFICATE, equal=False),))])


def test_pictures_without_data_are_left_out() -> None:
    empty = Network("x", "m", "d", (Row(8, simulated=0.5),))
    assert curves(empty) == pareto(empty.rows) == latencies(empty.rows) == ""
    assert "<figure" not in render([empty])


def test_pictures_take_the_colour_of_the_page() -> None:
    svg = pareto(ROWS)
    assert "currentColor" in svg
    assert "<title>" in svg
    assert all(f"{bits} bits" in svg for bits in (8, 2))


def test_an_artefact_is_joined_with_its_run(made_run: Path, made_artefact: Path, tmp_path: Path) -> None:
    shutil.copytree(made_run, tmp_path / "run")
    shutil.copytree(made_artefact, tmp_path / "art")
    results = [{"bits": 32, "accuracy": 0.5}, {"bits": 4, "accuracy": 0.4}]
    (tmp_path / "run/results").mkdir(exist_ok=True)
    (tmp_path / "run/results/evaluate.json").write_text(json.dumps({"data": "signs", "results": results}))
    (network,) = collect([tmp_path / "run", tmp_path / "art"])
    assert [row.bits for row in network.rows] == [32, 4]
    four = network.rows[1]
    assert (four.simulated, four.exact, four.target) == (0.4, True, "ort")
    assert network.rows[0].size_bytes and four.size_bytes
    assert len(network.metrics) == 1


def test_an_artefact_alone_stands_for_itself(made_artefact: Path, tmp_path: Path) -> None:
    shutil.copytree(made_artefact, tmp_path / "elsewhere/art")
    (network,) = collect([tmp_path / "elsewhere/art"])
    assert network.label == "resnet8"
    assert [row.bits for row in network.rows] == [4]


def test_results_from_another_machine_are_taken_by_the_models_hash(made_artefact: Path, tmp_path: Path) -> None:
    shutil.copytree(made_artefact, tmp_path / "art")
    sha = json.loads((tmp_path / "art/manifest.json").read_text())["files"]["model.onnx"]["sha256"]
    mine, other = {**LATENCY, "model_sha256": sha}, {**LATENCY, "model_sha256": "0" * 64, "p50_ms": 9.0}
    (tmp_path / "bench.json").write_text(json.dumps({"machine": {"cpu": "a board"}, "rows": [other, mine]}))
    (network,) = collect([tmp_path / "art"], results=[tmp_path / "bench.json"])
    assert network.rows[0].latency == mine
    assert network.machine == {"cpu": "a board"}


@pytest.mark.parametrize("threads", [(4, 1), (0, 4)])
def test_the_fewest_threads_are_shown(threads: tuple[int, int], made_artefact: Path, tmp_path: Path) -> None:
    sha = json.loads((made_artefact / "manifest.json").read_text())["files"]["model.onnx"]["sha256"]
    rows = [{**LATENCY, "model_sha256": sha, "threads": count} for count in threads]
    (tmp_path / "bench.json").write_text(json.dumps({"machine": {}, "rows": rows}))
    (network,) = collect([made_artefact], results=[tmp_path / "bench.json"])
    assert network.rows[0].latency is not None
    assert network.rows[0].latency["threads"] == threads[1]
