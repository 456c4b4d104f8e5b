import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeq.data.decode import REFUSED, fit, formats, open_rgb, shorter_side, suffixes
from edgeq.errors import InputError

GREY_RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def read(path: Path) -> np.ndarray:
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def saved(tmp_path: Path, image: Image.Image, name: str = "image.png", **options: object) -> np.ndarray:
    image.save(tmp_path / name, **options)  # pyright: ignore[reportArgumentType]
    return read(tmp_path / name)


def test_rgb_is_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(pixels)), pixels)


def test_grey_is_repeated_in_all_channels(tmp_path: Path) -> None:
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(GREY_RAMP)), GREY_RAMP[:, :, None].repeat(3, 2))


def test_black_and_white_become_0_and_255(tmp_path: Path) -> None:
    bits = GREY_RAMP % 2 == 1
    assert (saved(tmp_path, Image.fromarray(bits)) == bits[:, :, None] * 255).all()


def test_transparent_pixels_lie_on_mid_grey(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [255, 0, 0, 128]]], dtype=np.uint8)
    expected = [[255, 0, 0], [128, 128, 128], [192, 64, 64]]
    assert np.abs(saved(tmp_path, Image.fromarray(pixels)) - [expected]).max() <= 1  # Pillow rounds blends by one


def test_transparent_grey_lies_on_mid_grey(tmp_path: Path) -> None:
    image = Image.merge("LA", [Image.new("L", (2, 1), 255), Image.fromarray(np.array([[0, 255]], dtype=np.uint8))])
    np.testing.assert_array_equal(saved(tmp_path, image)[0, :, 0], [128, 255])


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(saved(tmp_path, image), [[[10, 20, 30], [200, 100, 50]]])


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_a_transparent_palette_colour_becomes_mid_grey(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    decoded = saved(tmp_path, image, transparency=transparency)
    np.testing.assert_array_equal(decoded, [[[128, 128, 128], [200, 100, 50]]])


def test_a_transparent_colour_of_rgb_becomes_mid_grey(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    decoded = saved(tmp_path, Image.fromarray(pixels), transparency=(1, 2, 3))
    np.testing.assert_array_equal(decoded, [[[128, 128, 128], [4, 5, 6]]])


@pytest.mark.parametrize("name", ["image.png", "image.tiff", "image.pgm"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257, 128 * 257, 300, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(values), name)[0, :, 0], [0, 1, 128, 1, 255])


def test_sixteen_bit_rgb_is_scaled_not_clipped(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + struct.pack(">6H", 0, 257 * 7, 65535, 257 * 128, 257 * 200, 257)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(png)
    np.testing.assert_array_equal(read(tmp_path / "deep.png"), [[[0, 7, 255], [128, 200, 1]]])


def test_wide_integers_outside_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "wide.tiff")
    with pytest.raises(InputError, match=r"wide\.tiff.*32-bit integers in 0…70000"):
        open_rgb(tmp_path / "wide.tiff")


def test_floats_within_0_and_1_are_scaled(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(saved(tmp_path, image, "float.tiff")[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_other_floats_are_refused(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.array([[0.0, value]], dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(InputError, match=r"float\.tiff.*got floats"):
        open_rgb(tmp_path / "float.tiff")


@pytest.mark.parametrize("name", ["image.tiff", "image.jpg"])
def test_cmyk_becomes_rgb(tmp_path: Path, name: str) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert np.abs(saved(tmp_path, image, name) - [255, 0, 0]).max() <= 3  # JPEG loses a little


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    decoded = saved(tmp_path, Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(decoded, np.rot90(pixels, 3))


def test_the_first_frame_of_an_animation_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    decoded = saved(tmp_path, frames[0], "two.gif", save_all=True, append_images=frames[1:])
    assert (decoded == [255, 0, 0]).all()


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tga", "tiff", "webp"])
def test_common_formats_are_read(tmp_path: Path, suffix: str) -> None:
    assert f".{suffix}" in suffixes()
    assert saved(tmp_path, Image.new("RGB", (3, 5), "white"), f"image.{suffix}").shape == (5, 3, 3)


def test_formats_that_run_programs_are_not_read(tmp_path: Path) -> None:
    assert not REFUSED & set(formats())
    (tmp_path / "harmless.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    with pytest.raises(InputError, match="no known image format"):
        open_rgb(tmp_path / "harmless.png")


def png_bytes(tmp_path: Path) -> bytes:
    Image.fromarray(GREY_RAMP).save(tmp_path / "whole.png")
    return (tmp_path / "whole.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "an empty file"), (b"no image at all", "no known image format"), (None, "no file")],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"expected an image in .*bad\.png, got .*{reason}.*; repair or remove it"):
        open_rgb(tmp_path / "bad.png")
    assert shorter_side(tmp_path / "bad.png") is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
def test_a_truncated_file_is_an_input_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"short.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"short\.{suffix}"):
        open_rgb(path)


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_damaged_bytes_give_an_image_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray(png_bytes(folder))
    data[place % len(data)] = value
    path = folder / "damaged.png"
    path.write_bytes(data[: cut % (2 * len(data))])
    try:
        assert open_rgb(path).mode == "RGB"
    except InputError as error:
        assert "damaged.png" in str(error) and "\n" not in str(error)


@given(width=st.integers(1, 60), height=st.integers(1, 60), size=st.integers(8, 20), margin=st.integers(0, 5))
def test_fit_always_gives_the_square(width: int, height: int, size: int, margin: int) -> None:
    assert fit(Image.new("RGB", (width, height)), resize=size + margin, size=size).shape == (size, size, 3)


def test_fit_keeps_the_middle() -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255
    assert fit(Image.fromarray(pixels), resize=10, size=10).min() == 255


def test_fit_leaves_pixels_of_the_right_size_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(Image.fromarray(pixels), resize=9, size=9), pixels)
