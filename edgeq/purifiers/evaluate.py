"""What a purifier does to clean images, and to the accuracy of the classifier behind it."""

import math
from itertools import count

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edgeq.attacks.victim import surrogate
from edgeq.data import ImageFiles, Split, batches
from edgeq.evaluate import Accuracy
from edgeq.integer import IntegerResult, Logits, Model, evaluate_integer
from edgeq.purifiers.alp import ALPPurifier
from edgeq.purifiers.artefact import IntegerPurifier
from edgeq.purifiers.base import AbstractAnswering, AbstractGuard, AbstractPurifier, Draw, to_bytes
from edgeq.purifiers.deployed import Purified
from edgeq.purifiers.metrics import Fidelity, perplexity
from edgeq.purifiers.purevq import PureVQPurifier
from edgeq.quant.network import MultiBitNet


def clean_measures(guard: AbstractGuard, split: Split | ImageFiles) -> dict[str, float | int]:
    """Return what a guard does to clean images: a purifier's fidelity, or the accuracies of what answers itself."""
    if isinstance(guard, AbstractPurifier):
        return fidelity(guard, split)
    assert isinstance(guard, AbstractAnswering)
    return _answered(guard, split)


@torch.no_grad()
def _answered(guard: AbstractAnswering, split: Split | ImageFiles, *, batch_size: int = 250) -> dict[str, float | int]:
    """Return the accuracies and the use of the codebook; the guard's mode is put back afterwards."""
    device = next(guard.parameters()).device
    was_training, total, body = guard.training, 0, {}
    counts: Tensor | None = None
    guard.eval()
    try:
        for images, labels in batches(split, batch_size, device=device):
            total += len(labels)
            for name, logits in guard.answers(images).items():
                body[name] = body.get(name, 0) + int((logits.argmax(1) == labels).sum())
            codes, numbers = guard.chosen(images)
            if numbers is not None:
                new = torch.bincount(numbers.flatten().cpu(), minlength=codes)
                counts = new if counts is None else counts + new
    finally:
        guard.train(was_training)
    measured: dict[str, float | int] = {"images": total} | {name: right / total for name, right in body.items()}
    if counts is not None:
        measured |= {"codes": codes, "codes_used": int((counts > 0).sum()), "perplexity": perplexity(counts)}
    return measured


@torch.no_grad()
def fidelity(purifier: AbstractPurifier, split: Split | ImageFiles, *, batch_size: int = 250) -> dict[str, float | int]:
    """Return PSNR, SSIM and the use of the codebook on a split; the purifier's mode is put back afterwards."""
    device = next(purifier.parameters()).device
    codes = purifier.bottleneck.codes if isinstance(purifier, PureVQPurifier) else 0
    measured = Fidelity(codes)
    was_training = purifier.training
    purifier.eval()
    try:
        for number, (images, _) in enumerate(batches(split, batch_size, device=device)):
            measured.add(images / 255.0, purifier(images, draw=Draw((0, number), shared=False)))
            if isinstance(purifier, PureVQPurifier):
                measured.count(purifier.indices(images))
    finally:
        purifier.train(was_training)
    body = measured.to_dict()
    bits = purifier.bits_per_image(tuple(images.shape[1:]))
    body |= {"sigma": float(purifier.sigma.detach())} if isinstance(purifier, ALPPurifier) else {}
    return body | ({"bits_per_image": bits} if math.isfinite(bits) else {})


@torch.no_grad()
def purified_accuracies(
    purifier: AbstractPurifier | IntegerPurifier,
    net: MultiBitNet,
    split: Split | ImageFiles,
    *,
    bits: tuple[int, ...] = (),
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 250,
) -> tuple[Accuracy, ...]:
    """Return the accuracy at each width behind the purifier, of the mean logits over `samples` fresh draws."""
    widths = bits or net.bits
    device = next(net.parameters()).device
    correct, total = dict.fromkeys(widths, 0), 0
    for number, (images, labels) in enumerate(batches(split, batch_size, device=device)):
        total += len(labels)
        seen = _purified(purifier, images, samples, Draw((seed, number), shared=False))
        for b in widths:
            view = surrogate(net, b)
            logits: Tensor = torch.stack([view(x) for x in seen]).mean(0)
            correct[b] += int((logits.argmax(1) == labels).sum())
    return tuple(Accuracy(b, correct[b], total) for b in widths)


def _purified(
    purifier: AbstractPurifier | IntegerPurifier, images: Tensor, samples: int, draw: Draw
) -> list[Float[Tensor, "n c h w"]]:
    """Return what a purifier makes of bytes, draw by draw, in [0, 1]."""
    if isinstance(purifier, IntegerPurifier):
        return [purifier(images) / 255.0]
    front = Purified(purifier, lambda x: x, samples, draw)
    return [front.purified(images, k) for k in range(samples)]


@torch.no_grad()
def purified_integer(
    purifier: AbstractPurifier | IntegerPurifier,
    model: Model,
    split: Split | ImageFiles,
    *,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 250,
) -> IntegerResult:
    """Return what an integer model makes of purified bytes, by the sum of its logits over the same draws as above."""
    device = torch.device("cpu") if isinstance(purifier, IntegerPurifier) else next(purifier.parameters()).device
    batch = count()

    def behind(images: UInt8[np.ndarray, "n c h w"]) -> Logits:
        seen = torch.from_numpy(images).to(device)
        given = _purified(purifier, seen, samples, Draw((seed, next(batch)), shared=False))
        drawn = np.stack([model(to_bytes(each).cpu().numpy()) for each in given])
        logits: Logits = drawn.sum(axis=0, dtype=np.int64)
        return logits

    return evaluate_integer(behind, split, batch_size=batch_size)
