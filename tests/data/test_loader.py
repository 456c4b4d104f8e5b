from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeq.data import Augment, ImageFiles, Split, TrainBatches, batches
from edgeq.data.scan import scan
from edgeq.errors import InputError

ALL = Augment(crop=2, flip=True, cutout=3)


def epoch(split: Split | ImageFiles, number: int = 0, start: int = 0, **options: object) -> list[tuple]:
    settings = {"batch_size": 8, "seed": 0, "augment": ALL} | options
    return list(TrainBatches(split, **settings).epoch(number, start))  # pyright: ignore[reportArgumentType]


def same(a: list[tuple], b: list[tuple]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for pair in zip(a, b, strict=True) for x, y in zip(*pair, strict=True)
    )


@pytest.fixture
def files(make_folder: Callable[..., Path]) -> ImageFiles:
    found = scan(make_folder({"train": ("a", "b")}, per_class=10, side=24) / "train")
    return ImageFiles(found.paths, torch.arange(20), image_size=16, resize=18)


def test_an_epoch_is_a_function_of_seed_and_number(split: Split) -> None:
    assert same(epoch(split), epoch(split))
    assert not same(epoch(split), epoch(split, number=1))
    assert not same(epoch(split), epoch(split, seed=1))
    assert not same(epoch(split, seed=1), epoch(split, number=1))  # seed and epoch are not just added


def test_every_batch_is_augmented_in_its_own_way(split: Split) -> None:
    alike = Split(split.images[:1].expand(37, -1, -1, -1), split.labels)
    assert len({images.numpy().tobytes() for number in (0, 1) for images, _ in epoch(alike, number)}) == 8


def test_an_epoch_shows_each_image_once(split: Split) -> None:
    labels = torch.cat([labels for _, labels in epoch(split, drop_last=False)])
    assert labels.sort().values.tolist() == list(range(37)) and labels.tolist() != list(range(37))


def test_the_number_of_batches_is_known(split: Split) -> None:
    for drop_last, expected in ((True, 4), (False, 5)):
        loader = TrainBatches(split, batch_size=8, seed=0, augment=None, drop_last=drop_last)
        assert len(loader) == expected == len(list(loader.epoch(0)))


def test_without_augmentation_images_are_unchanged(split: Split) -> None:
    for images, labels in epoch(split, augment=None):
        assert torch.equal(images, split.images[labels])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the fixture is never changed
@given(number=st.integers(0, 5), start=st.integers(0, 4), seed=st.integers(0, 2**40))
def test_an_epoch_goes_on_from_any_batch(split: Split, number: int, start: int, seed: int) -> None:
    assert same(epoch(split, number, start, seed=seed), epoch(split, number, seed=seed)[start:])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=st.sampled_from([1, 2, 4, 8]), number=st.integers(0, 3), drop_last=st.booleans())
def test_processes_together_see_what_one_sees(split: Split, world: int, number: int, drop_last: bool) -> None:
    whole = epoch(split, number, drop_last=drop_last)
    parts = [epoch(split, number, drop_last=drop_last, rank=rank, world_size=world) for rank in range(world)]
    joined = [tuple(torch.cat(tensors) for tensors in zip(*slices, strict=True)) for slices in zip(*parts, strict=True)]
    assert same(joined, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "world_size": 2}, "positive multiple of 2 processes, got 9"),
        ({"batch_size": 0}, "positive multiple"),
        ({"batch_size": 64}, "expected at least one batch of 64 images, got 37"),
        ({"rank": 2, "world_size": 2}, r"rank in 0\.\.1, got 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(split: Split, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        epoch(split, **options)


@pytest.mark.parametrize("start", [-1, 5])
def test_a_start_outside_the_epoch_is_refused(split: Split, start: int) -> None:
    with pytest.raises(InputError, match=r"first batch in 0\.\.4"):
        epoch(split, start=start)


def test_batches_go_through_a_split_in_order(split: Split) -> None:
    parts = list(batches(split, 10))
    assert [len(labels) for _, labels in parts] == [10, 10, 10, 7]
    assert torch.equal(torch.cat([images for images, _ in parts]), split.images)
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(37))


@pytest.mark.parametrize("size", [0, -3])
def test_an_impossible_batch_size_is_refused(split: Split, size: int) -> None:
    with pytest.raises(InputError, match="batch size of 1 or more"):
        next(batches(split, size))


def test_files_go_through_in_order(files: ImageFiles) -> None:
    parts = list(batches(files, 6))
    assert [tuple(images.shape) for images, _ in parts] == [(6, 3, 16, 16)] * 3 + [(2, 3, 16, 16)]
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(20))
    assert all(images.is_contiguous() for images, _ in parts)


def test_files_keep_the_laws_of_training_batches(files: ImageFiles) -> None:
    whole = epoch(files)
    assert same(whole, epoch(files)) and not same(whole, epoch(files, number=1))
    assert same(epoch(files, start=1), whole[1:])
    halves = [epoch(files, rank=rank, world_size=2) for rank in (0, 1)]
    assert same([tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*halves, strict=True)], whole)


def test_files_without_augmentation_are_as_in_evaluation(files: ImageFiles) -> None:
    expected = {int(label): image for images, labels in batches(files, 5) for image, label in zip(images, labels)}  # noqa: B905
    for images, labels in epoch(files, augment=None):
        assert all(torch.equal(image, expected[int(label)]) for image, label in zip(images, labels, strict=True))


def test_a_damaged_file_is_named_when_its_batch_is_made(files: ImageFiles) -> None:
    files.paths[13].write_bytes(b"x")
    with pytest.raises(InputError, match=r"b/003\.png"):
        list(batches(files, 6))


def test_an_epoch_of_files_can_be_left_early(files: ImageFiles) -> None:
    loader = TrainBatches(files, batch_size=4, seed=0, augment=ALL).epoch(0)
    next(loader)
    loader.close()  # pyright: ignore[reportAttributeAccessIssue]
