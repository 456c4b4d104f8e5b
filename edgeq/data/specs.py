"""From the text a user writes (`signs:train=4000`, `folder:PATH`) to a data set.

| spec | what | sides exchanged |
|---|---|---|
| `signs`, `signs:train=4000,test=1000` | road signs, drawn here (`signs.py`) | no |
| `folder:PATH`, `folder:PATH?flip=false` | images sorted into folders (`folder.py`) | yes, unless told |
| `cifar10:PATH` | CIFAR-10's published files (`cifar.py`) | yes |
| `imagenet:PATH` | ImageNet's folders (`imagenet.py`) | yes |
| `poisoned:FOLDER` | one of these with poisons in it (`poisoned.py`) | as there |
"""

from pathlib import Path

from edgeq.data.cifar import cifar10
from edgeq.data.folder import folder
from edgeq.data.imagenet import imagenet
from edgeq.data.poisoned import poisoned
from edgeq.data.signs import signs
from edgeq.data.splits import Dataset
from edgeq.errors import InputError

FORMS = "signs, signs:train=N,test=N, folder:PATH, cifar10:PATH, imagenet:PATH, poisoned:FOLDER"
SMALLEST = 8  # pixels; below it no network here has anything left after its strides
LARGEST = 1024
MOST = 1_000_000  # signs in one split; they are all in memory


def load(spec: str, *, seed: int = 0, image_size: int | None = None, cache: Path | None = None) -> Dataset:
    """Load a data set.

    Args:
        spec: What to load, see the table above.
        seed: Decides what `signs` draws; the other sets do not depend on it.
        image_size: Side of the images in pixels. Default: 32 for `signs` and `cifar10`, 224 for `imagenet`, the most
            common size for `folder`.
        cache: Folder for decoded images; default $EDGEQ_CACHE, or else $XDG_CACHE_HOME/edgeq, or ~/.cache/edgeq.

    Raises:
        InputError: The spec, a path, or an image is not what was expected.
    """
    if image_size is not None and not SMALLEST <= image_size <= LARGEST:
        raise InputError(f"expected an image size in {SMALLEST}..{LARGEST} pixels, got {image_size}; choose another")
    kind, _, rest = spec.partition(":")
    if kind == "signs":
        return signs(**_counts(rest), seed=seed, image_size=image_size)
    if kind in ("folder", "cifar10", "imagenet", "poisoned") and not rest:
        raise InputError(f"expected {kind}:PATH, got '{spec}' without a path; name the folder after the colon")
    if kind == "folder":
        return folder(rest, image_size=image_size, cache=cache)
    if kind == "cifar10":
        return cifar10(rest, image_size=image_size)
    if kind == "imagenet":
        return imagenet(rest, image_size=image_size)
    if kind == "poisoned":
        return poisoned(rest, lambda base: load(base, seed=seed, image_size=image_size, cache=cache))
    hint = f"for a folder of images write folder:{spec}" if Path(spec).exists() else "choose one of these"
    raise InputError(f"expected one of {FORMS}, got '{spec}'; {hint}")


def _counts(text: str) -> dict[str, int]:
    """Read `train=4000,test=1000`."""
    counts: dict[str, int] = {}
    for item in text.split(",") if text else []:
        name, _, value = item.partition("=")
        if name not in ("train", "test") or name in counts or not value.isdecimal() or not 1 <= int(value) <= MOST:
            raise InputError(f"expected signs:train=N,test=N with counts from 1 to {MOST}, got '{item}'; correct it")
        counts[name] = int(value)
    return counts
