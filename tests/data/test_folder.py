import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import edgeq.data.cache as cache_module
import edgeq.data.folder as folder_module
from edgeq.data import ImageFiles, Split, batches, load
from edgeq.errors import InputError

MakeFolder = Callable[..., Path]
BOTH = {"train": ("cat", "dog"), "test": ("cat", "dog")}


def test_a_folder_becomes_two_splits(make_folder: MakeFolder) -> None:
    root = make_folder(BOTH)
    data = load(f"folder:{root}")
    assert isinstance(data.train, Split) and isinstance(data.test, Split)
    assert (data.name, data.classes, data.flip) == ("set", ("cat", "dog"), True)
    assert data.train.images.shape == (6, 3, 16, 16)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(root / "test" / "dog" / "001.png") as image:
        expected = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(16, 16, 3).permute(2, 0, 1)
    assert torch.equal(data.test.images[4], expected)


@pytest.mark.parametrize(("option", "flip"), [("", True), ("?flip=true", True), ("?flip=false", False)])
def test_flip_is_taken_from_the_spec(make_folder: MakeFolder, option: str, flip: bool) -> None:
    assert load(f"folder:{make_folder(BOTH)}{option}").flip is flip


def test_another_value_of_flip_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match="expected flip=true or flip=false, got flip=no"):
        load(f"folder:{make_folder(BOTH)}?flip=no")


def test_the_most_common_size_is_taken_and_others_are_cut_to_it(make_folder: MakeFolder) -> None:
    root = make_folder(BOTH, side=20)
    Image.new("RGB", (51, 33)).save(root / "train" / "cat" / "odd.png")
    assert isinstance(train := load(f"folder:{root}").train, Split)
    assert train.images.shape == (7, 3, 20, 20)


def test_large_images_are_brought_to_224(make_folder: MakeFolder) -> None:
    train = load(f"folder:{make_folder(BOTH, per_class=1, side=300)}").train
    assert isinstance(train, Split) and train.images.shape[2:] == (224, 224)


def test_image_size_is_obeyed(make_folder: MakeFolder) -> None:
    train = load(f"folder:{make_folder(BOTH)}", image_size=24).train
    assert isinstance(train, Split) and train.images.shape[2:] == (24, 24)


def test_damaged_files_are_named_and_counted(make_folder: MakeFolder) -> None:
    root = make_folder(BOTH, per_class=5)
    (root / "train" / "cat" / "001.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cat/001\.png, got an empty file"):
        load(f"folder:{root}")
    for i in range(5):
        (root / "test" / "dog" / f"00{i}.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"6 of 20 images .*cat/001.*dog/000.*dog/001") as caught:
        load(f"folder:{root}")
    assert "dog/002" not in str(caught.value)


def test_when_all_files_are_damaged_they_are_named(make_folder: MakeFolder) -> None:
    root = make_folder(BOTH, per_class=1)
    for path in root.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="4 of 4 images"):
        load(f"folder:{root}")


def test_classes_that_differ_are_named(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("cat", "dog"), "test": ("cat", "cow")})
    with pytest.raises(InputError, match=r"dog only in .*train and cow only in .*test"):
        load(f"folder:{root}")


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"expected a folder .* with train/<class>/"):
        load(f"folder:{tmp_path / place}")


def test_class_folders_without_train_are_explained(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match=r"expected .*/train/<class>/ with images, got cat, dog"):
        load(f"folder:{make_folder({'cat': ('x',), 'dog': ('x',)})}")


def test_an_empty_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got an empty folder"):
        load(f"folder:{tmp_path}")


def test_without_a_test_split_a_tenth_is_split_off(make_folder: MakeFolder) -> None:
    root = make_folder({"train": ("a", "b")}, per_class=20)
    with pytest.warns(UserWarning, match="4 of 40 training images"):
        data = load(f"folder:{root}")
    with pytest.warns(UserWarning, match="test is not there"):
        other = load(f"folder:{root}", seed=5)
    assert isinstance(data.test, Split) and isinstance(other.test, Split) and isinstance(data.train, Split)
    assert data.test.labels.tolist() == [0, 0, 1, 1] and len(data.train) == 36
    assert torch.equal(data.test.images, other.test.images)
    trained = {image.numpy().tobytes() for image in data.train.images}
    assert not trained & {image.numpy().tobytes() for image in data.test.images}


def test_one_image_cannot_be_split(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match="got one image in a, b"):
        load(f"folder:{make_folder({'train': ('a', 'b')}, per_class=1)}")


def test_large_sets_stay_files_and_give_the_same_test_images(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(BOTH)
    small = load(f"folder:{root}")
    monkeypatch.setattr(folder_module, "IN_MEMORY_BYTES", 100)
    large = load(f"folder:{root}")
    assert isinstance(large.test, ImageFiles) and large.classes == small.classes
    for (images, labels), (expected, expected_labels) in zip(
        batches(large.test, 4), batches(small.test, 4), strict=True
    ):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)


class TestCache:
    @pytest.fixture(autouse=True)
    def keep_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cache_module, "MIN_IMAGES", 1)

    def test_the_second_load_decodes_nothing(
        self, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = f"folder:{make_folder(BOTH)}"
        first = load(spec, cache=tmp_path / "cache").train
        monkeypatch.setattr(folder_module, "decode_all", None)
        second = load(spec, cache=tmp_path / "cache").train
        assert isinstance(first, Split) and isinstance(second, Split)
        assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)

    def test_a_changed_file_is_decoded_again(self, make_folder: MakeFolder, tmp_path: Path) -> None:
        root = make_folder(BOTH)
        load(f"folder:{root}", cache=tmp_path / "cache")
        path = root / "train" / "cat" / "000.png"
        old = path.stat()
        time.sleep(0.01)
        shutil.copy(root / "train" / "dog" / "000.png", path)
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))  # even with its old time
        train = load(f"folder:{root}", cache=tmp_path / "cache").train
        assert isinstance(train, Split) and torch.equal(train.images[0], train.images[3])

    @pytest.mark.parametrize("damage", [b"", b"not safetensors"])
    def test_a_damaged_cache_is_made_again(self, make_folder: MakeFolder, tmp_path: Path, damage: bytes) -> None:
        spec = f"folder:{make_folder(BOTH)}"
        first = load(spec, cache=tmp_path / "cache").train
        (file,) = (tmp_path / "cache").iterdir()
        file.write_bytes(damage)
        second = load(spec, cache=tmp_path / "cache").train
        assert isinstance(first, Split) and isinstance(second, Split) and torch.equal(first.images, second.images)
        assert file.stat().st_size > len(damage)

    def test_a_cache_that_cannot_be_written_costs_a_warning(self, make_folder: MakeFolder, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file where the folder should be")
        with pytest.warns(UserWarning, match="not cached"):
            load(f"folder:{make_folder(BOTH)}", cache=tmp_path / "cache")

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"EDGEQ_CACHE": "/x/chosen", "XDG_CACHE_HOME": "/x/base"}, Path("/x/chosen")),
            ({"XDG_CACHE_HOME": "/x/base"}, Path("/x/base/edgeq")),
            ({"HOME": "/x/home"}, Path("/x/home/.cache/edgeq")),
        ],
    )
    def test_the_folder_comes_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Path
    ) -> None:
        for name in ("EDGEQ_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cache_module.cache_folder() == expected


def test_small_sets_are_not_cached(make_folder: MakeFolder, tmp_path: Path) -> None:
    load(f"folder:{make_folder(BOTH)}", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_cifar_as_a_folder(tmp_path: Path) -> None:
    root = Path(os.environ.get("EDGEQ_DATA", "/nonexistent")) / "cifar10"
    if not root.is_dir():
        pytest.skip("set EDGEQ_DATA to a folder that holds cifar10/train/<class>/ and cifar10/test/<class>/")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(f"folder:{root}")
    assert isinstance(data.train, Split)
    assert len(data.classes) == 10 and data.train.images.shape[1:] == (3, 32, 32)
    assert data.train.labels.bincount().tolist() == [len(data.train) // 10] * 10
