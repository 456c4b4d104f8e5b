"""What a purifier does to clean images, and to the accuracy of the classifier behind it."""

import math

import torch
from torch import Tensor

from edgeq.attacks.victim import surrogate
from edgeq.data import ImageFiles, Split, batches
from edgeq.evaluate import Accuracy
from edgeq.purifiers.base import AbstractPurifier, Draw, Purified
from edgeq.purifiers.metrics import Fidelity
from edgeq.purifiers.purevq import PureVQPurifier
from edgeq.quant.network import MultiBitNet


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
    return body | ({"bits_per_image": bits} if math.isfinite(bits) else {})


@torch.no_grad()
def purified_accuracies(
    purifier: AbstractPurifier,
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
    device = next(purifier.parameters()).device
    correct, total = dict.fromkeys(widths, 0), 0
    for number, (images, labels) in enumerate(batches(split, batch_size, device=device)):
        total += len(labels)
        front = Purified(purifier, lambda x: x, samples, Draw((seed, number), shared=False))
        seen = [front.purified(images, k) for k in range(samples)]
        for b in widths:
            view = surrogate(net, b)
            logits: Tensor = torch.stack([view(x) for x in seen]).mean(0)
            correct[b] += int((logits.argmax(1) == labels).sum())
    return tuple(Accuracy(b, correct[b], total) for b in widths)
