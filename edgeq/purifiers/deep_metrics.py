"""LPIPS and FID: distances of images in the eyes of networks, whose weights the user has and nothing here downloads.

LPIPS (Zhang et al., arXiv 1801.03924, version 0.1): the mean over places, summed over five layers of AlexNet, of
w_l |f_l(x) - f_l(y)|^2 with features of length 1; the package lpips has w_l, the file has AlexNet as torchvision does.

FID (Heusel et al., arXiv 1706.08500): |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), means and covariances of 2048
features of the Inception network of the package torch-fidelity. With few images it is biased upwards: compare figures
of as many images only.
"""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from edgeq.errors import InputError, require
from edgeq.purifiers.base import to_bytes

ALEXNET = "alexnet-owt-7be5be79.pth"  # the names under which the weights are published
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
SMALLEST = 32  # pixels; AlexNet's second pooling has nothing left of much less
BATCH = 50
Images = Float[Tensor, "n c h w"]


@dataclass(frozen=True)
class DeepMetrics:
    """The distances that are asked for.

    Attributes:
        lpips: Distance of each pair of images.
        features: What FID compares: images to rows.
    """

    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    features: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def of(self, clean: Images, redrawn: Images) -> dict[str, float]:
        """Return `lpips`, the mean over the pairs, and `fid` of the two sets; only what is asked for."""
        row: dict[str, float] = {}
        if self.lpips is not None:
            row["lpips"] = float(self.lpips(clean, redrawn).mean())
        if self.features is not None:
            row["fid"] = frechet(self.features(clean), self.features(redrawn))
        return row


def deep_metrics(
    lpips: Path | None, fid: Path | None, *, image_shape: tuple[int, ...], device: str | torch.device
) -> DeepMetrics:
    """Return the distances whose files of weights are given.

    Raises:
        InputError: A file is not there or holds something else, a package is missing, or the images are too small.
    """
    if lpips is not None or fid is not None:
        check_images(image_shape)
    return DeepMetrics(
        None if lpips is None else _lpips(lpips, device), None if fid is None else _inception(fid, device)
    )


def check_images(shape: tuple[int, ...]) -> None:
    """Refuse what the networks cannot see."""
    if shape[0] != 3 or min(shape[1:]) < SMALLEST:
        raise InputError(
            f"expected 3 channels and {SMALLEST} pixels or more for LPIPS and FID, got {shape}; ask for neither"
        )


def frechet(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Return the Frechet distance between the normal distributions that fit two sets of rows."""
    x, y = x.double(), y.double()
    product = _covariance(x) @ _covariance(y)
    # the eigenvalues of a product of two covariances are real and not negative; float arithmetic strays a little
    roots = torch.linalg.eigvals(product).real.clamp_min(0).sqrt().sum()
    spread = _covariance(x).trace() + _covariance(y).trace() - 2 * roots
    return float((x.mean(0) - y.mean(0)).square().sum() + spread)


def _covariance(rows: Float64[Tensor, "n d"]) -> Float64[Tensor, "d d"]:
    if len(rows) < 2:
        raise InputError(f"expected 2 or more images for FID, got {len(rows)}; measure more")
    return rows.T.cov().reshape(rows.shape[1], rows.shape[1])  # of one column it is a number


def _lpips(path: Path, device: str | torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    require("lpips", "perceptual")
    from lpips import LPIPS

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks torchvision in an older way, and draws weights, replaced at once
        net = LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = {name.removeprefix("features."): t for name, t in _weights(path, ALEXNET).items()}
    slices = [getattr(net.net, f"slice{k}") for k in range(1, 6)]  # of the layers of `features`, under their own names
    _fill({name: layer for part in slices for name, layer in part.named_children()}, weights, path, ALEXNET)
    net.eval().requires_grad_(False).to(device)

    def distances(x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(x.split(BATCH), y.split(BATCH), strict=True)
        return torch.cat([net(a * 2 - 1, b * 2 - 1).flatten() for a, b in pairs])

    return distances


def _inception(path: Path, device: str | torch.device) -> Callable[[Tensor], Tensor]:
    require("torch_fidelity", "perceptual")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    _weights(path, INCEPTION)  # the package would run whatever a pickle says
    try:
        with torch.random.fork_rng(devices=[]):
            net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except RuntimeError as error:
        raise _other(path, INCEPTION) from error
    net.eval().requires_grad_(False).to(device)
    return lambda images: torch.cat([net(to_bytes(part))[0] for part in images.split(BATCH)])


def _weights(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a file; no code of it runs."""
    if not path.is_file():
        raise InputError(
            f"expected the weights {name} (or a copy under another name), got no file {path}; bring it here"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _other(path, name) from error
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise _other(path, name)
    return found


def _fill(layers: dict[str, nn.Module], weights: dict[str, Tensor], path: Path, name: str) -> None:
    for place, layer in layers.items():
        for key, parameter in layer.named_parameters():
            found = weights.get(f"{place}.{key}")
            if found is None or found.shape != parameter.shape:
                raise _other(path, name)
            parameter.data.copy_(found)


def _other(path: Path, name: str) -> InputError:
    return InputError(f"expected the weights of {name} in {path}, got something else; bring that file here")
