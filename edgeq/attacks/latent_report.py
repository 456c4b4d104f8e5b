"""What autoencoders withstand of the attacks on their latents.

Each stands against its own attacker, who knows it; a smoothed one also against the attacks made on its start.
Each row has, of the images redrawn under attack against the clean ones, `mse` (of pixels in [0, 1]), `psnr`, `ssim`;
with weights for them `lpips` and `fid`;
`moved`, how far the latents went, |E(x') - E(x)|, in units of the clean latents' spread; and `left`, |E(x') - t| /
|E(x) - t|, how much of the way to the target remains. `worst` takes for each image the attack that hurts most.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.attacks.latent import LATENT_WAYS, TARGETED, Autoencoder, attack_autoencoder, check_way, target
from edgeq.attacks.pipeline_report import Assault
from edgeq.purifiers.deep_metrics import DeepMetrics
from edgeq.purifiers.metrics import PERFECT, psnr, ssim

BEYOND = 1.05  # two attacks that find the same optimum differ by less


def latents_withstood(
    models: Mapping[str, Autoencoder],
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    assault: Assault,
    *,
    deep: DeepMetrics | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Attack every model in every way at every eps and return the JSON object; see the module docstring.

    Args:
        models: By name; attacks on the first are tried on the others too.
        images: Bytes, on the models' device.
        labels: Their classes.
        assault: What is tried; its ways out of LATENT_WAYS.
        deep: LPIPS and FID, where they are asked for.
        progress: Called with a line before each attack.
    """
    ways = assault.ways or LATENT_WAYS
    for way in ways:
        check_way(way, labels)
    first = next(iter(models))
    seen = {name: _Scene(model, images, labels, assault.seed, deep or DeepMetrics()) for name, model in models.items()}
    rows: list[dict[str, Any]] = []
    worst: list[dict[str, Any]] = []
    for eps in sorted(set(assault.eps)):
        errors: dict[str, list[Tensor]] = {name: [] for name in models}
        for way in ways:
            found: dict[str, Tensor] = {}
            for name, model in models.items():
                if progress is not None:
                    progress(f"eps {eps}/255, {way} on {name}")
                found[name] = attack_autoencoder(
                    way, model, images, labels, eps=eps, effort=assault.effort, seed=assault.seed
                )
            for name in models:
                for made_on in dict.fromkeys((name, first)):
                    row, error = seen[name].measured(way, found[made_on])
                    rows.append({"eps": eps, "way": way, "model": name, "made_on": made_on, **row})
                    errors[name].append(error)
        worst += [{"eps": eps, "model": name, **_worst(several)} for name, several in errors.items()]
    clean = {name: scene.drawn(images)[0] for name, scene in seen.items()}
    return {"images": len(images), "clean": clean, "rows": rows, "worst": worst, "warnings": _warnings(rows)}


@dataclass(frozen=True)
class _Scene:
    """One model before the images."""

    model: Autoencoder
    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    seed: int
    deep: DeepMetrics

    @torch.no_grad()
    def drawn(self, moved: UInt8[Tensor, "n c h w"]) -> tuple[dict[str, float], Float[Tensor, " n"]]:
        """Return how like the clean images the redrawn ones are, and each one's squared error."""
        clean, redrawn = self.images / 255.0, self.model.redraw(moved)
        error = (redrawn - clean).square().flatten(1).mean(1)
        row = {"mse": error, "psnr": psnr(clean, redrawn), "ssim": ssim(clean, redrawn)}
        return {name: float(value.mean()) for name, value in row.items()} | self.deep.of(clean, redrawn), error

    @torch.no_grad()
    def measured(self, way: str, moved: UInt8[Tensor, "n c h w"]) -> tuple[dict[str, float], Float[Tensor, " n"]]:
        """Return the row of an attack, and each image's squared error."""
        row, error = self.drawn(moved)
        before, after = self.model.encode(self.images), self.model.encode(moved)
        row["moved"] = _rms(after - before) / max(_rms(before - before.mean(0)), 1e-12)
        if way in TARGETED:
            goal = target(way, self.model, self.images, self.labels, seed=self.seed)
            row["left"] = _rms(after - goal) / max(_rms(before - goal), 1e-12)
        return row, error


def _worst(errors: list[Tensor]) -> dict[str, float]:
    """Return the means over the images of each one's largest error, and of its PSNR."""
    most = torch.stack(errors).amax(0)
    return {"mse": float(most.mean()), "psnr": float((-10 * torch.log10(most)).clamp(max=PERFECT).mean())}


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _warnings(rows: list[dict[str, Any]]) -> list[str]:
    """Doubt a model that is hurt more by the attacks on another than by those on itself."""
    climbing = {(r["eps"], r["model"], r["made_on"]): r["mse"] for r in rows if r["way"] == "reconstruction"}
    return [
        f"eps {eps}/255: the attack made on {made_on} hurts {name} more than its own ({mse:.4g} against "
        f"{climbing[eps, name, name]:.4g}); its gradients are masked, or the attack has too few steps or starts"
        for (eps, name, made_on), mse in climbing.items()
        if mse > BEYOND * climbing[eps, name, name]
    ]
