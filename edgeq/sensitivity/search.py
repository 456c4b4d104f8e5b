"""Bits for each layer under a budget: the least noise at the logits that so many bytes or bit-operations allow.

A layer with w-bit weights and a-bit codes costs

    bytes    its packed weights                           bits     w, per weight: a budget for the mean width
    bops     multiplications of one image x w x a

and adds the noise of its weights at w bits and of its codes at a bits (`noise.py`). The sum of noises is made as small
as the budget allows (`knapsack.py`). Biases, multipliers and the graph itself cost some bytes more, whatever the bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from edgeq.errors import InputError
from edgeq.quant.layer_bits import Bits
from edgeq.quant.network import QuantConfig
from edgeq.sensitivity.knapsack import knapsack
from edgeq.sensitivity.noise import LayerNoise

Kind = Literal["bytes", "bops", "bits"]
LIMIT_DB = 100.0


@dataclass(frozen=True)
class Budget:
    """What a network may cost.

    Attributes:
        kind: Bytes of packed weights, bit-operations for one image, or mean bits of a weight.
        amount: How much; of bytes and bit-operations also as a `share` of what the network with 8 bits everywhere has.
        share: Whether `amount` is that share.
    """

    kind: Kind
    amount: int | float
    share: bool = False

    def __post_init__(self) -> None:
        """Check the choices."""
        if not 0 < self.amount < math.inf:
            raise InputError(f"expected a budget above 0, got {self.amount}; give a number")
        if self.share and self.kind == "bits":
            raise InputError("expected mean bits of a weight as a number, got a share; give for example 4.5")

    def limit(self, layers: tuple[LayerNoise, ...]) -> int:
        """Return the largest sum of `cost` over the layers."""
        if self.kind == "bits":
            return math.floor(self.amount * sum(layer.weights for layer in layers))
        whole = sum(self.cost(layer, (8, 8)) for layer in layers) if self.share else 1
        return math.floor(self.amount * whole)

    def cost(self, layer: LayerNoise, bits: Bits) -> int:
        """Return what a layer costs."""
        if self.kind == "bytes":
            return layer.weight_bytes(bits[0])
        return layer.weights * bits[0] if self.kind == "bits" else layer.macs * bits[0] * bits[1]


@dataclass(frozen=True)
class Plan:
    """Bits of every layer, what they cost, and the noise that they should make.

    Attributes:
        name: For people.
        layers: Bits of weights and codes, of the layers that have a choice.
        weight_bytes: Of the packed weights.
        bops: Bit-operations for one image.
        mean_bits: Of a weight.
        noise: Of the logits, as a share of their power.
        within: Whether it is within the budget.
    """

    name: str
    layers: Mapping[str, Bits]
    weight_bytes: int
    bops: int
    mean_bits: float
    noise: float
    within: bool

    @property
    def decibels(self) -> float:
        """The expected SQNR of the logits."""
        return LIMIT_DB if self.noise <= 0 else max(-LIMIT_DB, min(LIMIT_DB, -10 * math.log10(self.noise)))

    def config(self, quant: QuantConfig, setting: int) -> QuantConfig:
        """Return a network's choices with these bits as one of its widths."""
        named = {**quant.layer_bits, setting: dict(self.layers)}
        return replace(quant, bits=tuple({*quant.bits, setting}), layer_bits=named)


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        mixed: Bits of their own for each layer.
        uniform: The same bits in all layers but those that keep theirs, one plan per number of bits; where codes are
            chosen apart, also with codes of 8 bits.
        exact: Whether `mixed` has the least noise of all choices (else, of those that were kept on the way).
        limit: The budget in units of its cost.
    """

    mixed: Plan
    uniform: tuple[Plan, ...]
    exact: bool
    limit: int


def search(
    layers: tuple[LayerNoise, ...],
    budget: Budget,
    *,
    edge_bits: int = 8,
    ends: bool = False,
    alike: bool = False,
) -> Search:
    """Return the bits of least noise within a budget.

    Args:
        layers: From `layer_noises`, at all the bits to choose from.
        budget: What they may cost.
        edge_bits: What the first and the last layer keep (`QuantConfig.edge_bits`).
        ends: Choose the bits of the first and the last layer too.
        alike: Codes have the bits of their layer's weights, as in a uniform network; else they are chosen apart.

    Raises:
        InputError: The smallest choice is beyond the budget.
    """
    keeps = _kept(edge_bits, ends)
    options = [[kept] if (kept := keeps(layer)) else _options(layer, alike) for layer in layers]
    costs = [[budget.cost(layer, bits) for bits in some] for layer, some in zip(layers, options, strict=True)]
    losses = [[_noise(layer, bits) for bits in some] for layer, some in zip(layers, options, strict=True)]
    limit = budget.limit(layers)
    choice = knapsack(costs, losses, limit)
    if choice is None:
        least = sum(map(min, costs))
        raise InputError(
            f"expected a budget of {_amount(budget, least, layers)} or more, got {_amount(budget, limit, layers)}; the "
            "smallest choice of bits needs as much (--edge-layers lets the first and the last layer have fewer)"
        )
    chosen = {layer.name: some[k] for layer, some, k in zip(layers, options, choice.options, strict=True)}
    widths = sorted(layers[0].weight_noise, reverse=True)
    uniform = [plan(f"{b} bits", layers, {x.name: keeps(x) or _uniform(x, b) for x in layers}, budget) for b in widths]
    for b in () if alike else [b for b in widths if b < 8]:
        uniform.append(plan(f"{b} bits, codes 8", layers, {x.name: keeps(x) or (b, 8) for x in layers}, budget))
    return Search(plan("mixed", layers, chosen, budget), tuple(uniform), choice.exact, limit)


def plan(name: str, layers: tuple[LayerNoise, ...], bits: Mapping[str, Bits], budget: Budget) -> Plan:
    """Return what a choice of bits costs."""
    weights = sum(layer.weights for layer in layers)
    return Plan(
        name,
        {layer.name: bits[layer.name] for layer in layers if not layer.is_affine},
        sum(layer.weight_bytes(bits[layer.name][0]) for layer in layers),
        sum(layer.macs * bits[layer.name][0] * bits[layer.name][1] for layer in layers),
        sum(layer.weights * bits[layer.name][0] for layer in layers) / max(weights, 1),
        sum(_noise(layer, bits[layer.name]) for layer in layers),
        sum(budget.cost(layer, bits[layer.name]) for layer in layers) <= budget.limit(layers),
    )


def nearest_setting(found: Plan) -> int:
    """Return the width to call a plan by: the whole number from 2 to 8 next to the mean bits of its weights."""
    return min(8, max(2, round(found.mean_bits)))


def _kept(edge_bits: int, ends: bool) -> Callable[[LayerNoise], Bits | None]:
    def keeps(layer: LayerNoise) -> Bits | None:
        if layer.is_affine:
            return 8, 8
        return (edge_bits, 8) if layer.end and edge_bits and not ends else None

    return keeps


def _options(layer: LayerNoise, alike: bool) -> list[Bits]:
    bits = sorted(layer.weight_noise)
    if alike or layer.pixels:
        return [_uniform(layer, b) for b in bits]
    return list(product(bits, bits))


def _uniform(layer: LayerNoise, bits: int) -> Bits:
    return bits, 8 if layer.pixels else bits


def _noise(layer: LayerNoise, bits: Bits) -> float:
    """Return a layer's noise; 0 for bits that were not asked about, which only layers have that keep theirs."""
    return layer.weight_noise.get(bits[0], 0.0) + layer.code_noise.get(bits[1], 0.0)


def _amount(budget: Budget, cost: int, layers: tuple[LayerNoise, ...]) -> str:
    if budget.kind == "bits":
        return f"{cost / max(sum(layer.weights for layer in layers), 1):.3f} bits per weight"
    return f"{cost} {'bytes of weights' if budget.kind == 'bytes' else 'bit-operations'}"
