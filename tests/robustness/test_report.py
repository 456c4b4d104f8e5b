"""The page shows what was measured, stands alone, and is the same for the same results."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from edgeq.data import Dataset
from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet
from edgeq.report import Network, Row, collect, render
from edgeq.robustness import Plan, attack_matrix, document, doubts
from edgeq.robustness.pictures import Pictures, keep_pictures, look, open_pictures
from tests.robustness.test_matrix import PLAN


@pytest.fixture(scope="module")
def attacked(
    agreeing: MultiBitNet, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, Pictures]:
    plan: Plan = dataclasses.replace(PLAN, attacks=("located", "gap"), towards=(1,), surrogates=("each", "joint"))
    matrix = attack_matrix(agreeing, dataset, plan, folder=tmp_path_factory.mktemp("attacked"))
    rows, pictures = look(agreeing, matrix, classes=dataset.classes)
    return document(matrix, warnings=doubts(matrix, agreeing), perceptual=rows), pictures


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass


def _page(attacked: tuple[dict, Pictures]) -> str:
    network = Network("run", "m", "halves", (Row(32, 1.0), Row(8, 1.0)), attacks=attacked[0], pictures=attacked[1])
    return render([network])


def test_the_page_is_whole_and_stands_alone(attacked: tuple[dict, Pictures]) -> None:
    page = _page(attacked)
    parser = _Tags()
    parser.feed(page)
    assert parser.open == []
    links = set(re.findall(r"https?://[^\"'<> )]+", page))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)
    assert set(re.findall(r'href="([a-z]+:)', page)) == {"data:"}


def test_the_page_shows_every_matrix_and_picture(attacked: tuple[dict, Pictures]) -> None:
    page = _page(attacked)
    cells = [cell for cell in attacked[0]["cells"] if not cell["probe"]]
    assert page.count('class="cell') == 2 * len(cells)
    assert page.count('class="cell own"') == 4  # each width, by two attacks
    assert page.count('class="pixels"') == 6 * 3  # clean, located, gap
    assert page.count("Input gradient of each width") == 2
    for words in ("Who fools whom", "none differs", "edge IoU", "dark", "bright", "reasons for doubt"):
        assert words in page


def test_the_same_results_give_the_same_page(attacked: tuple[dict, Pictures]) -> None:
    assert _page(attacked) == _page(attacked)


def test_words_from_outside_are_escaped(attacked: tuple[dict, Pictures]) -> None:
    body = json.loads(json.dumps(attacked[0]))
    body["warnings"] = ["<script>alert(1)</script>"]
    body["cells"][0]["surrogate"] = "<b>"
    page = _page((body, attacked[1]))
    assert "<script>" not in page and "<td><b></td>" not in page


def test_pictures_survive_the_folder(attacked: tuple[dict, Pictures], tmp_path: Path) -> None:
    assert open_pictures(tmp_path) is None
    keep_pictures(tmp_path, attacked[1])
    read = open_pictures(tmp_path)
    assert read is not None and read.captions == attacked[1].captions
    assert all(torch.equal(read.tensors[name], value) for name, value in attacked[1].tensors.items())


def test_the_whole_evaluation_is_preferred_to_the_short_one(
    attacked: tuple[dict, Pictures], made_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(made_run, tmp_path / "run")
    (tmp_path / "run/results").mkdir(exist_ok=True)
    assert collect([tmp_path / "run"])[0].attacks is None
    (tmp_path / "run/results/attacks.json").write_text(json.dumps({**attacked[0], "perceptual": []}))
    assert collect([tmp_path / "run"])[0].attacks is not None
    (tmp_path / "run/results/robustness.json").write_text(json.dumps(attacked[0]))
    (network,) = collect([tmp_path / "run"])
    assert network.attacks is not None and network.attacks["perceptual"]


def test_a_damaged_evaluation_is_named(made_run: Path, tmp_path: Path) -> None:
    shutil.copytree(made_run, tmp_path / "run")
    (tmp_path / "run/results").mkdir(exist_ok=True)
    (tmp_path / "run/results/robustness.json").write_text('{"headline": []}')
    with pytest.raises(InputError, match=r"robustness\.json"):
        collect([tmp_path / "run"])
