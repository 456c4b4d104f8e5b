"""What the deployed network says to images: in the simulated arithmetic, and from the integer model in ONNX Runtime.

The two are one function, so their logits must agree as integers; every logit is compared and every difference counted.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from edgeq.attacks import surrogate
from edgeq.attacks.goal import Victim
from edgeq.attacks.patch import as_float
from edgeq.errors import InputError
from edgeq.integer import Model, runner
from edgeq.quant.bits import FLOAT_BITS, at_bits
from edgeq.quant.network import MultiBitNet


@dataclass(frozen=True)
class Answer:
    """The class named for each image.

    Attributes:
        named: By the network in the deployed arithmetic.
        integer: By the integer model in ONNX Runtime; None where there is none.
        codes: Logits compared.
        mismatches: Logits that differ.
    """

    named: Int64[Tensor, " n"]
    integer: Int64[Tensor, " n"] | None = None
    codes: int = 0
    mismatches: int = 0


class Answerer:
    """Asks a network, and the integer models made from it, width by width."""

    def __init__(self, net: MultiBitNet, *, integer: bool = True, batch_size: int = 100) -> None:
        self.net = net
        self.batch_size = batch_size
        self.refused: dict[int, str] = {}
        self.models: dict[int, Model] = {}
        for bits in net.quantized_bits() if integer else ():
            try:
                self.models[bits] = integer_model(net, bits)
            except InputError as error:  # a width that cannot be exported is still worth evaluating; the report says so
                self.refused[bits] = str(error)

    def ask(self, images: UInt8[Tensor, "n c h w"], bits: int) -> Answer:
        """Return the answers at one width."""
        parts = [self._ask(part, bits) for part in images.split(self.batch_size)]
        integer = None if bits not in self.models else torch.cat([p.integer for p in parts if p.integer is not None])
        return Answer(
            torch.cat([p.named for p in parts]), integer, sum(p.codes for p in parts), sum(p.mismatches for p in parts)
        )

    @torch.no_grad()
    def _ask(self, images: Tensor, bits: int) -> Answer:
        codes = logits_of(self.net, images, bits)
        named = codes.argmax(1).cpu()
        if bits not in self.models:
            return Answer(named)
        shipped = self.models[bits](images.cpu().numpy())
        expected = codes.round().to(torch.int32).cpu().numpy()
        wrong = int((shipped != expected).sum())
        return Answer(named, torch.from_numpy(shipped.argmax(1).astype(np.int64)), int(shipped.size), wrong)


def integer_model(net: MultiBitNet, bits: int) -> Model:
    """Return the integer model of one width, as it would be shipped for ONNX Runtime, ready to run."""
    from edgeq.export import build, lower

    model = build(lower(net, bits=bits), "ort").SerializeToString()
    return runner(model, threads=torch.get_num_threads())


def logits_of(net: MultiBitNet, images: UInt8[Tensor, "n c h w"], bits: int) -> Tensor:
    """Return the logits in the deployed arithmetic: integer-valued codes below 32 bits."""
    if bits == FLOAT_BITS:
        return surrogate(net, bits)(images)
    before, net.width.deployed = net.width.deployed, True
    try:
        with at_bits(net, bits):
            return net.values(images)[net.names[-1]].codes
    finally:
        net.width.deployed = before


@torch.no_grad()
def named_by(victim: Victim, images: UInt8[Tensor, "n c h w"], *, batch_size: int = 100) -> Int64[Tensor, " n"]:
    """Return the classes that any victim names; an ensemble's logits are averaged."""
    parts = []
    for part in images.split(batch_size):
        logits = victim(as_float(part))
        parts.append((logits if logits.dim() == 2 else logits.flatten(0, -3).mean(0)).argmax(1).cpu())
    return torch.cat(parts)
