"""Decode one image file, of any kind that Pillow reads, into 8-bit RGB.

What becomes of each kind of image:

* grey: the value is repeated in the three channels; black-and-white: 0 and 255;
* transparent (RGBA, grey with alpha, a palette or PNG with a transparent colour): laid over mid-grey (128), because
  the colours under transparent pixels are arbitrary and 128 is the zero of the networks' input;
* palette: the colours it points to;
* 16 bits per channel: scaled to 8 (65535 becomes 255), never clipped; 32-bit integers only if they are 16-bit values
  that a format stores wide, floating point only within 0…1: of other ranges nobody knows what is white;
* CMYK and YCbCr: converted to RGB without colour profiles;
* turned by EXIF: turned upright;
* several frames (GIF, TIFF, APNG, WebP): the first.

Formats that are not pixels, or that start other programs when they are opened (EPS runs Ghostscript), are refused.
"""

import threading
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from edgeq.errors import InputError

REFUSED = frozenset({"EPS", "WMF", "PDF", "MPEG", "HDF5", "GRIB", "BUFR"})
BACKDROP = (128, 128, 128, 255)
WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")

_INIT = threading.Lock()  # Pillow loads its plugins on demand, which threads must not do at once


def formats() -> tuple[str, ...]:
    """Return the formats that are read, in Pillow's names."""
    with _INIT:
        Image.init()
    return tuple(name for name in Image.ID if name not in REFUSED)


def suffixes() -> frozenset[str]:
    """Return the file name endings of the formats that are read, in lower case with the dot."""
    known = set(formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def open_rgb(path: Path, *, allowed: tuple[str, ...] | None = None) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    Args:
        path: The file.
        allowed: The result of `formats()`, to save asking for it for every file.

    Raises:
        InputError: The file is missing, empty, damaged, or no image; the message names it.
    """
    try:
        with Image.open(path, formats=allowed or formats()) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except InputError as error:
        raise InputError(f"expected an image in {path}, {error}") from error
    except Exception as error:  # noqa: BLE001, RUF100 - on damaged bytes the plugins raise whatever they stumble on
        raise InputError(f"expected an image in {path}, got {_reason(path, error)}; repair or remove it") from error


def shorter_side(path: Path) -> int | None:
    """Return the shorter side of an image from its header; None if that cannot be read."""
    try:
        with Image.open(path, formats=formats()) as image:
            return min(image.size)
    except Exception:  # noqa: BLE001, RUF100 - as above; whoever decodes the file reports it
        return None


def fit(image: Image.Image, *, resize: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resize the shorter side to `resize` and keep the middle `size` square."""
    width, height = image.size
    if min(width, height) != resize:
        scale = resize / min(width, height)
        width, height = max(resize, round(width * scale)), max(resize, round(height * scale))
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)) if image.size != (size, size) else image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_GREY or image.mode == "I":
        image = _from_wide(np.asarray(image).astype(np.int64))
    elif image.mode == "F":
        image = _from_float(np.asarray(image))
    if image.mode in ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKDROP), image)
    return image.convert("RGB")


def _from_wide(values: np.ndarray) -> Image.Image:
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"got 32-bit integers in {values.min()}…{values.max()}; convert them to 8 or 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _from_float(values: np.ndarray) -> Image.Image:
    if not (values.min() >= 0 and values.max() <= 1):  # said so that NaN is refused too
        raise InputError(f"got floats in {values.min()}…{values.max()}; scale them to 0…1 or convert them to 8 bits")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no file"
    if path.is_file() and path.stat().st_size == 0:
        return "an empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "bytes of no known image format"
    return f"damaged data ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'})"
