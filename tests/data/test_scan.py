from collections.abc import Callable
from pathlib import Path

import pytest

from edgeq.data.scan import listing, scan
from edgeq.errors import InputError

MakeFolder = Callable[..., Path]


def test_images_are_ordered_by_class_and_name(make_folder: MakeFolder) -> None:
    found = scan(make_folder({"train": ("b", "a")}, per_class=2) / "train")
    assert found.classes == ("a", "b")
    assert [path.relative_to(found.root).as_posix() for path in found.paths] == [
        *("a/000.png", "a/001.png", "b/000.png", "b/001.png")
    ]
    assert found.labels == (0, 0, 1, 1)


def test_folders_inside_a_class_are_searched(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("a",)}) / "train"
    (root / "a" / "more").mkdir()
    (root / "a" / "000.png").rename(root / "a" / "more" / "UPPER.PNG")
    assert root / "a" / "more" / "UPPER.PNG" in scan(root).paths


def test_hidden_and_other_files_are_left_out(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("a",)}) / "train"
    before = scan(root)
    for name in (".hidden.png", "notes.txt", "Thumbs.db", "no_ending"):
        (root / "a" / name).write_bytes(b"x")
    (root / ".checkpoints").mkdir()
    (root / "a" / ".git").mkdir()
    (root / "a" / ".git" / "x.png").write_bytes(b"x")
    (root / "readme.md").write_text("x")
    assert scan(root) == before


def test_links_to_parents_and_to_themselves_are_safe(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("a",)}) / "train"
    before = scan(root)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "here").symlink_to(root / "a")
    (root / "a" / "itself").symlink_to(root / "a" / "itself")
    assert set(before.paths) <= set(scan(root).paths)
    (root / "a" / "up").unlink()
    assert scan(root) == before


def test_a_linked_class_folder_is_followed(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("a",), "elsewhere": ("b",)})
    (root / "train" / "c").symlink_to(root / "elsewhere" / "b")
    assert scan(root / "train").classes == ("a", "c")


def test_a_broken_link_is_listed_so_that_decoding_names_it(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("a",)}) / "train"
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    assert root / "a" / "gone.png" in scan(root).paths


def test_an_empty_class_is_named(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("a",)}) / "train"
    (root / "hollow").mkdir()
    with pytest.raises(InputError, match="got none in hollow"):
        scan(root)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(InputError, match="expected one folder per class"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "a file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").write_text("x")
    with pytest.raises(InputError, match=f"got {'a file' if name == 'a file' else 'nothing'}"):
        scan(tmp_path / name)


def test_listing_counts_what_it_leaves_out() -> None:
    assert listing(["a", "b", "c"]) == "a, b, c"
    assert listing(["a", "b", "c", "d"]) == "a, b, c, … (4 in all)"
