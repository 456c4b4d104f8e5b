from collections.abc import Callable
from pathlib import Path

import pytest

from edgeq.data import ImageFiles, load
from edgeq.errors import InputError

MakeFolder = Callable[..., Path]


@pytest.mark.parametrize("spec", ["mnist", "mnist:/x", "", "Signs"])
def test_an_unknown_set_lists_the_known_ones(spec: str) -> None:
    forms = "folder:PATH, cifar10:PATH, imagenet:PATH, poisoned:FOLDER"
    with pytest.raises(InputError, match=rf"signs, .*{forms}, got '{spec}'"):
        load(spec)


def test_a_bare_path_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"write folder:{tmp_path}"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "options", ["train=0", "train=-1", "train=x", "val=3", "train", "train=1,train=2", "train=1,", "test=99999999999"]
)
def test_wrong_counts_of_signs_are_refused(options: str) -> None:
    with pytest.raises(InputError, match="expected signs:train=N,test=N"):
        load(f"signs:{options}")


@pytest.mark.parametrize("spec", ["folder", "folder:", "cifar10", "imagenet:"])
def test_a_missing_path_is_explained(spec: str) -> None:
    with pytest.raises(InputError, match="without a path"):
        load(spec)


@pytest.mark.parametrize("size", [0, 7, -32, 5000])
def test_impossible_image_sizes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"image size in 8..1024 pixels, got {size}"):
        load("signs", image_size=size)


def test_imagenet_is_listed_but_not_decoded(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("n01", "n02"), "val": ("n01", "n02")})
    data = load(f"imagenet:{root}")
    assert isinstance(data.train, ImageFiles) and isinstance(data.test, ImageFiles)
    assert (data.name, data.classes, data.flip) == ("imagenet", ("n01", "n02"), True)
    assert (data.test.image_size, data.test.resize) == (224, 256)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train",), "got no val"),
        (("train", "test"), "got no val"),
        ((), "got no train and no val"),
    ],
)
def test_imagenet_says_which_folder_is_missing(
    make_folder: MakeFolder, tmp_path: Path, splits: tuple[str, ...], message: str
) -> None:
    make_folder({split: ("a",) for split in splits})
    with pytest.raises(InputError, match=message):
        load(f"imagenet:{tmp_path / 'set'}")
