from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeq.data import ImageFiles, Split, holdout
from edgeq.errors import InputError


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the fixture is never changed
@given(count=st.integers(1, 36), seed=st.integers(0, 1000))
def test_holdout_divides_a_split(split: Split, count: int, seed: int) -> None:
    held, rest = holdout(split, count, seed=seed)
    assert len(held) == count
    assert sorted(held.labels.tolist() + rest.labels.tolist()) == list(range(37))
    assert torch.equal(held.images, split.images[held.labels])
    again, _ = holdout(split, count, seed=seed)
    assert torch.equal(held.labels, again.labels)


def test_holdout_depends_on_the_seed(split: Split) -> None:
    assert not torch.equal(holdout(split, 10, seed=0)[0].labels, holdout(split, 10, seed=1)[0].labels)


def test_holdout_divides_files() -> None:
    files = ImageFiles(tuple(Path(f"{i}.png") for i in range(10)), torch.arange(10), image_size=8, resize=8)
    held, rest = holdout(files, 3, seed=0)
    assert len(held) == 3 and len(rest) == 7
    assert all(path.name == f"{label}.png" for part in (held, rest) for path, label in zip(part.paths, part.labels))  # noqa: B905


@pytest.mark.parametrize("count", [0, 37, -1, 100])
def test_holdout_leaves_no_part_empty(split: Split, count: int) -> None:
    with pytest.raises(InputError, match=f"between 1 and 36 images to hold out, got {count}"):
        holdout(split, count, seed=0)


def test_files_need_a_label_each_and_a_margin() -> None:
    with pytest.raises(ValueError, match="one label per path"):
        ImageFiles((Path("a"),), torch.arange(2), image_size=8, resize=8)
    with pytest.raises(ValueError, match="resize >= image_size"):
        ImageFiles((Path("a"),), torch.arange(1), image_size=8, resize=7)
