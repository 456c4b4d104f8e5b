"""How faithful a purifier is, and how much of its codebook it uses.

PSNR = -10 log10(mean (x - y)^2) of images in [0, 1]. SSIM is that of Wang et al. 2004: an 11 x 11 Gaussian window of
standard deviation 1.5, K1 = 0.01, K2 = 0.03, the mean over all windows inside the image and over the channels.
Perplexity = exp(-sum_k p_k log p_k) of the codes' frequencies: as many equally used codes as say the same.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

WINDOW, DEVIATION = 11, 1.5
K1, K2 = 0.01, 0.03
PERFECT = 100.0  # dB; what equal images get, whose PSNR would be infinite


def psnr(x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Return the PSNR of each pair in dB, at most PERFECT."""
    error = (x - y).square().flatten(1).mean(1)
    return (-10 * torch.log10(error)).clamp(max=PERFECT)


def ssim(x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Return the structural similarity of each pair."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + K1**2) * (2 * covariance + K2**2)
    bottom = (mean_x**2 + mean_y**2 + K1**2) * (var_x + var_y + K2**2)
    return (top / bottom).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    place = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    weight = torch.exp(-0.5 * (place / DEVIATION) ** 2)
    weight = weight / weight.sum()
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
    return flat.view(*x.shape[:2], *flat.shape[2:])


@dataclass
class Fidelity:
    """Running means over batches, and the codes' counts.

    Attributes:
        codes: Size of the codebook; 0 for none.
        images: Images seen.
    """

    codes: int = 0
    images: int = 0
    psnr_sum: float = 0.0
    ssim_sum: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def add(self, clean: Float[Tensor, "n c h w"], purified: Float[Tensor, "n c h w"]) -> None:
        """Add a batch of images in [0, 1]."""
        self.images += len(clean)
        self.psnr_sum += float(psnr(clean, purified).sum())
        self.ssim_sum += float(ssim(clean, purified).sum())

    def count(self, indices: Int64[Tensor, "n h w"]) -> None:
        """Add a batch of code numbers."""
        counts = torch.bincount(indices.flatten().cpu(), minlength=self.codes)
        self.counts = counts if len(self.counts) == 0 else self.counts + counts

    def to_dict(self) -> dict[str, float | int]:
        """Return the results."""
        body: dict[str, float | int] = {
            "images": self.images,
            "psnr": self.psnr_sum / max(self.images, 1),
            "ssim": self.ssim_sum / max(self.images, 1),
        }
        if len(self.counts):
            body |= {"codes": self.codes, "codes_used": int((self.counts > 0).sum())}
            body["perplexity"] = perplexity(self.counts)
        return body


def perplexity(counts: Int64[Tensor, " k"]) -> float:
    """Return exp(entropy) of a histogram."""
    share = counts.double() / counts.sum().clamp(min=1)
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
