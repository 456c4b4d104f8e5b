import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeq.errors import InputError
from edgeq.purifiers import Draw, load_purifier
from edgeq.purifiers.apply import apply_folder, purify_any, weights_of
from edgeq.purifiers.base import to_bytes
from tests.purifiers.conftest import images


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub" / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "sub/a.png", "sub/deep/c.bmp")):
        pixels = images(1, seed=i, side=24)[0].permute(1, 2, 0).numpy()[: 24 - i, : 24 - 2 * i]
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}


def test_names_sizes_and_folders_are_kept(vq_run: Path, source: Path, tmp_path: Path) -> None:
    _, purifier = load_purifier(vq_run)
    done = apply_folder(purifier, source, tmp_path / "out", weights=weights_of(vq_run))
    assert (done.done, done.kept, done.bad) == (4, 0, [])
    assert _files(tmp_path / "out") == _files(source) - {"notes.txt"}
    for name in _files(tmp_path / "out"):
        assert _pixels(tmp_path / "out" / name).shape == _pixels(source / name).shape
    pixels = torch.from_numpy(_pixels(source / "a.png")).permute(2, 0, 1)[None]
    wanted = to_bytes(purify_any(purifier, pixels, draw=Draw(0)))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(_pixels(tmp_path / "out/a.png"), wanted)


def test_sides_that_fit_are_purified_as_they_are(alp_run: Path) -> None:
    _, purifier = load_purifier(alp_run)
    made = purify_any(purifier, images(), draw=Draw(3))
    torch.testing.assert_close(made, purifier(images().float() / 255, draw=Draw(3)), atol=1e-6, rtol=0)
    assert purify_any(purifier, images(1)[:, :, :5, :7], draw=Draw(3)).shape == (1, 3, 5, 7)


def test_it_goes_on_where_it_stopped_and_follows_changes(vq_run: Path, source: Path, tmp_path: Path) -> None:
    _, purifier = load_purifier(vq_run)
    out, run = tmp_path / "out", weights_of(vq_run)

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        apply_folder(purifier, source, out, weights=run, progress=stop)
    second = apply_folder(purifier, source, out, weights=run)
    assert second.kept > 0
    assert second.kept + second.done == 4
    Image.fromarray(images(1, seed=9)[0].permute(1, 2, 0).numpy()).save(source / "a.png")
    third = apply_folder(purifier, source, out, weights=run)
    assert (third.done, third.kept) == (1, 3)
    with pytest.raises(InputError, match="another seed"):
        apply_folder(purifier, source, out, weights=run, seed=1)


def test_an_older_image_in_the_same_place_is_made_again(vq_run: Path, source: Path, tmp_path: Path) -> None:
    _, purifier = load_purifier(vq_run)
    out, run = tmp_path / "out", weights_of(vq_run)
    apply_folder(purifier, source, out, weights=run)
    before = (out / "a.png").read_bytes()
    Image.fromarray(images(1, seed=9, side=24)[0].permute(1, 2, 0).numpy()).save(source / "a.png")
    os.utime(source / "a.png", (0, 0))
    assert apply_folder(purifier, source, out, weights=run).done == 1
    assert (out / "a.png").read_bytes() != before
    shutil.copytree(source, tmp_path / "in2")
    with pytest.raises(InputError, match="another source"):
        apply_folder(purifier, tmp_path / "in2", out, weights=run)


def test_large_images_go_one_by_one(vq_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, purifier = load_purifier(vq_run)
    (tmp_path / "in").mkdir()
    for i in range(5):
        Image.fromarray(images(1, seed=i, side=32)[0].permute(1, 2, 0).numpy()).save(tmp_path / f"in/{i}.png")
    sizes: list[int] = []
    forward = purifier.forward

    def noted(batch: torch.Tensor, **more: object) -> torch.Tensor:
        sizes.append(len(batch))
        return forward(batch, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(purifier, "forward", noted)
    monkeypatch.setattr("edgeq.purifiers.apply.PIXELS", 2 * 32 * 32)
    apply_folder(purifier, tmp_path / "in", tmp_path / "few", weights=weights_of(vq_run))
    assert sizes == [2, 2, 1]

    def full(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(purifier, "forward", full)
    found = apply_folder(purifier, tmp_path / "in", tmp_path / "none", weights=weights_of(vq_run))
    assert found.done == 0
    assert len(found.bad) == 5
    assert "too large for the memory" in found.bad[0]


def test_bad_files_are_named_and_the_others_done(vq_run: Path, source: Path, tmp_path: Path) -> None:
    _, purifier = load_purifier(vq_run)
    (source / "sub" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot")
    (source / "empty.jpg").touch()
    done = apply_folder(purifier, source, tmp_path / "out", weights=weights_of(vq_run))
    assert done.done == 4
    assert len(done.bad) == 2
    assert any("broken.png" in message for message in done.bad)
    assert any("empty.jpg" in message for message in done.bad)


def test_png_keeps_every_bit_and_refuses_names_that_collide(vq_run: Path, source: Path, tmp_path: Path) -> None:
    _, purifier = load_purifier(vq_run)
    apply_folder(purifier, source, tmp_path / "out", weights=weights_of(vq_run), png=True)
    assert _files(tmp_path / "out") == {"a.png", "b.png", "sub/a.png", "sub/deep/c.png"}
    Image.new("RGB", (16, 16)).save(source / "a.bmp")
    with pytest.raises(InputError, match=r"got two for a\.png"):
        apply_folder(purifier, source, tmp_path / "more", weights=weights_of(vq_run), png=True)


def test_wrong_folders_are_refused(vq_run: Path, source: Path, tmp_path: Path) -> None:
    _, purifier = load_purifier(vq_run)
    run = weights_of(vq_run)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match="expected images"):
        apply_folder(purifier, other, tmp_path / "out", weights=run)
    (other / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something"):
        apply_folder(purifier, source, other, weights=run)
    with pytest.raises(InputError, match="one lies in the other"):
        apply_folder(purifier, source, source / "sub", weights=run)
    with pytest.raises(InputError, match="got nothing"):
        apply_folder(purifier, tmp_path / "nowhere", tmp_path / "out", weights=run)
    with pytest.raises(InputError, match="got the file"):
        apply_folder(purifier, source, other / "mine.txt", weights=run)
    assert json.loads(json.dumps(sorted(p.name for p in other.iterdir()))) == ["mine.txt"]
