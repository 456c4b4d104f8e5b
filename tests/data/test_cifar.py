import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from edgeq.data import Split, load
from edgeq.errors import InputError


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ten images in CIFAR-10's format and make torchvision take them for the published ones."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def images(labels: list[int]) -> dict[str, object]:
        return {"data": rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8), "labels": labels}

    names = [f"class{i}" for i in range(10)]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": names})}
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", write("data_batch_1", images([3, 1, 4]))]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", images([2, 7]))]])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return folder


def test_published_files_are_read(published: Path) -> None:
    for path in (published, published.parent):
        data = load(f"cifar10:{path}")
        assert isinstance(data.train, Split) and data.flip and data.classes[3] == "class3"
        assert data.train.labels.tolist() == [3, 1, 4] and data.test.labels.tolist() == [2, 7]
    raw = pickle.loads((published / "data_batch_1").read_bytes())["data"]
    assert torch.equal(data.train.images, torch.from_numpy(raw).view(3, 3, 32, 32))


def test_images_are_resized_on_request(published: Path) -> None:
    train = load(f"cifar10:{published}", image_size=16).train
    assert isinstance(train, Split) and train.images.shape == (3, 3, 16, 16)


def test_a_damaged_file_is_refused_before_it_is_opened(published: Path) -> None:
    (published / "data_batch_1").write_bytes(b"not what was published")
    with pytest.raises(InputError, match="got other or damaged files"):
        load(f"cifar10:{published}")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected CIFAR-10's published python files .* got no such folder"):
        load(f"cifar10:{tmp_path}")
