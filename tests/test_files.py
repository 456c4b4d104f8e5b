"""Whole files or none, and the messages of `InputError`."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeq import files
from edgeq.errors import InputError, MissingExtra, require

WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: files.write_bytes(path, b"new"),
    "text": lambda path: files.write_text(path, "new"),
    "json": lambda path: files.write_json(path, {"new": 1}),
    "tensors": lambda path: files.save_tensors(path, {"new": torch.ones(2)}),
}
READERS: dict[str, Callable[[Path], object]] = {
    "json": files.read_json,
    "tensors": files.load_tensors,
    "sha256": files.sha256,
}


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class Point:
    x: int
    where: Path


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_write_makes_missing_folders_replaces_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "a" / "b" / "file"
    write(path)
    first = path.read_bytes()
    path.write_bytes(b"old")
    write(path)
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], call: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(InputError, match=r"expected to write .*file, got 'No space left on device'; free space"):
        write(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_disk_that_fills_up_while_writing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def write_to_a_full_disk(path: Path, data: bytes) -> None:
        path.touch()
        with open("/dev/full", "wb") as file:
            file.write(data)

    monkeypatch.setattr(files, "_write_and_sync", write_to_a_full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        files.write_bytes(tmp_path / "file", bytes(1 << 20))
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("obj", "error"), [({"x": float("nan")}, ValueError), ([float("inf")], ValueError), ({"x": object()}, TypeError)]
)
def test_what_json_cannot_say_is_refused_before_the_old_file_is_touched(
    tmp_path: Path, obj: object, error: type[Exception]
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error):
        files.write_json(tmp_path / "file", obj)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    for place in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="choose another place"):
            files.write_bytes(place, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert not [name for name in os.listdir(tmp_path.parent) if name.endswith(".tmp")]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "file", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(obj=json_values)
def test_json_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, obj: object) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    files.write_json(path, obj)
    assert files.read_json(path) == obj


def test_dataclasses_and_paths_become_plain_json_in_their_order(tmp_path: Path) -> None:
    files.write_json(tmp_path / "file", {"b": Point(x=1, where=Path("a/b")), "a": "é"})
    text = (tmp_path / "file").read_text(encoding="utf-8")
    assert list(json.loads(text).items()) == [("b", {"x": 1, "where": "a/b"}), ("a", "é")]
    assert "é" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.uint8).reshape(2, 3).T,
        torch.tensor(-1, dtype=torch.int32),
        torch.zeros(0, 3),
        torch.full((2,), torch.nan, requires_grad=True),
        torch.ones(2, dtype=torch.bfloat16),
    ],
    ids=["transposed", "scalar", "empty", "nan", "bfloat16"],
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, tensor: Tensor) -> None:
    files.save_tensors(tmp_path / "file", {"name": tensor, "same memory": tensor})
    loaded = files.load_tensors(tmp_path / "file")
    assert list(loaded) == ["name", "same memory"]  # sorted
    for copy in loaded.values():
        torch.testing.assert_close(copy, tensor.detach(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_missing_file_is_an_input_error(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match=r"expected a readable file .*gone, got 'No such file or directory'"):
        read(tmp_path / "gone")


@pytest.mark.parametrize(
    "damage", [b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"]
)
def test_damaged_json_is_an_input_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "file").write_bytes(damage)
    with pytest.raises(InputError, match=r"expected JSON in .*file, got .*; the file is damaged"):
        files.read_json(tmp_path / "file")


def test_damaged_tensors_are_an_input_error_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.save_tensors(path, {"name": torch.arange(4.0)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"expected safetensors in .*file, got .*; the file is damaged"):
            files.load_tensors(path)


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stop"), files.new_folder(place) as folder:
        files.write_text(folder / "a", "a")
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())
    with files.new_folder(place) as folder:
        files.write_text(folder / "a", "a")
        assert not place.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["run"] and (place / "a").read_text() == "a"
    with pytest.raises(InputError, match=r"expected to write .*run"), files.new_folder(place):
        pass
    assert (place / "a").read_text() == "a"


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "file").write_bytes(data)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_require_returns_the_module_or_names_the_extra() -> None:
    assert require("json.decoder", "none").__name__ == "json.decoder"
    with pytest.raises(MissingExtra, match=r"expected .* no_such_engine.runtime, got none; .* 'edgeq\[engine\]'"):
        require("no_such_engine.runtime", "engine")


def test_require_keeps_the_error_of_a_package_that_is_there_but_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_engine.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        require("broken_engine", "engine")
