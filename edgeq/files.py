"""Reading and writing files so that a reader sees a whole file or none.

Every write goes to a temporary name in the same folder, is flushed to the disk, and is then renamed over the
final name; renaming inside one folder is atomic. Whatever fails on the way (a full disk, Ctrl-C, an object that is
not JSON) leaves the old file as it was and no temporary file behind. Tensors are kept as safetensors, never as
pickle, so that loading a file cannot run code.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from edgeq.errors import InputError


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` whole or not at all, making missing folders.

    Raises:
        InputError: The place cannot be written (no permission, no space, a folder of that name).
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_and_sync(temporary, data)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # after the rename it is gone; a failed clean-up must not hide the cause
                temporary.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"expected to write {path}, got '{reason}'; free space there or choose another place"
        ) from error


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends, or vanishes when it fails.

    `path` must be free or an empty folder.

    Raises:
        InputError: The place cannot be written.
    """
    path = Path(path).absolute()
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, path)  # over an empty folder too
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"expected to write {path}, got '{reason}'; choose another place") from error
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path` whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` as JSON (two spaces, keys in their order) to `path` whole or not at all.

    Dataclasses become objects and paths become strings. NaN and infinity are not JSON: pass `None` for a number
    that does not exist.

    Raises:
        ValueError: `obj` holds NaN or infinity.
        TypeError: `obj` holds something that JSON cannot say.
    """
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:  # Any: JSON is any type, and every caller checks its own fields
    """Read a JSON file.

    Raises:
        InputError: The file is missing, cannot be read, or is damaged.
    """
    try:
        return json.loads(_read_bytes(path).decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"expected JSON in {path}, got '{error}'; the file is damaged, make it again") from error


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors to `path` whole or not at all; two names may share one memory."""
    # safetensors refuses tensors that share memory (tied weights, views), hence the copies
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(copies))


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the named tensors of a safetensors file onto the CPU, sorted by name.

    Raises:
        InputError: The file is missing, cannot be read, or is damaged.
    """
    try:
        return dict(sorted(safetensors.torch.load(_read_bytes(path)).items()))  # safetensors keeps no order
    except safetensors.SafetensorError as error:
        raise InputError(
            f"expected safetensors in {path}, got '{error}'; the file is damaged, make it again"
        ) from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Raises:
        InputError: The file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | os.PathLike[str], error: OSError) -> InputError:
    return InputError(f"expected a readable file {path}, got '{error.strerror or error}'; check the path")


def _write_and_sync(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system can flush a folder."""
    with contextlib.suppress(OSError):  # not every system opens folders; the file itself is already safe
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _plain(obj: object) -> object:
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return dataclasses.asdict(obj)
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    raise TypeError(f"expected something that JSON can say, got {type(obj).__name__}; convert it before writing")
