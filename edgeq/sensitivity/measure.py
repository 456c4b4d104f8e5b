"""Measure how much each unit costs at each width.

Per batch the network runs once in real numbers and, per width, once with everything rounded. From those two, each unit
is exchanged alone, in both directions, and only what lies behind it runs again. Nothing is random.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from edgeq.calib.walk import check_bits as check_widths
from edgeq.calib.walk import check_images, check_weights, evaluating
from edgeq.data import ImageFiles, Split, batches
from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet
from edgeq.quant.units import AbstractUnit, Value
from edgeq.quant.weighted import WeightedUnit
from edgeq.sensitivity.mixture import Mixture, reference_bits, rounding_units
from edgeq.sensitivity.sums import Tally, code_counts, decibels, power
from edgeq.sensitivity.weights import Bins, Weights, weights_of

PIXELS = 100 * 32 * 32  # in a batch: all values of two networks are kept at a time
WORST = 5


@dataclass(frozen=True)
class Answers:
    """How many images changed sides: `lost` were right and are wrong, `gained` the other way round."""

    lost: int
    gained: int

    @property
    def net(self) -> int:
        """The images lost in all."""
        return self.lost - self.gained

    @property
    def clear(self) -> bool:
        """Whether more were lost than chance explains: beyond two standard deviations of a fair coin."""
        return self.net > 0 and self.net**2 > 4 * (self.lost + self.gained)


@dataclass(frozen=True)
class Channel:
    """An output channel: its SQNR with this unit alone quantized; its largest |weight| beside the layer's."""

    channel: int
    own_db: float
    weight_db: float | None
    weight_max: float | None
    layer_weight_max: float | None


@dataclass(frozen=True)
class Codes:
    """How often each code occurs; the first and the last count are values beyond the codes, which saturate.

    Attributes:
        step: What one code is worth.
        low: The first bin: one below the smallest code.
        counts: In the network at this width, before clipping.
        float_counts: The reference's values on the same grid.
    """

    step: float
    low: int
    counts: tuple[int, ...]
    float_counts: tuple[int, ...]

    @property
    def saturated(self) -> float:
        """The share of values beyond the codes."""
        return (self.counts[0] + self.counts[-1]) / max(sum(self.counts), 1)


@dataclass(frozen=True)
class Layer:
    """One unit at one width; all SQNR are against the reference, in decibels.

    Attributes:
        name: Of the unit.
        kind: conv, linear, add, avgpool or concat.
        weight_bits: Of its weights; None for joins.
        output_db: Its result when the whole network runs at the width.
        own_db: Its result when it alone does.
        logits_db: The logits when it alone does.
        weight_db: Its weights.
        alone: Images lost to the reference when it alone is quantized.
        left_out: Images lost to the quantized network when it alone is not; negative where leaving it out helps.
        saturated: The share of its results beyond the codes, the whole network at the width; None for logits.
        worst: The channels with the lowest own_db.
        codes: Its activation codes; None for logits.
        weights: Its float weights; None for joins.
    """

    name: str
    kind: str
    weight_bits: int | None
    output_db: float
    own_db: float
    logits_db: float
    weight_db: float | None
    alone: Answers
    left_out: Answers
    saturated: float | None
    worst: tuple[Channel, ...]
    codes: Codes | None
    weights: Bins | None


@dataclass(frozen=True)
class WidthReport:
    """All units at one width, in the network's order.

    Attributes:
        bits: The width.
        correct: Images named rightly with every unit quantized, in the arithmetic of `Mixture`.
        deployed: The same in the deployed arithmetic.
        layers: The units.
    """

    bits: int
    correct: int
    deployed: int
    layers: tuple[Layer, ...]

    def worst_first(self) -> tuple[Layer, ...]:
        """Return the units by the images that each costs alone, then by what it does to the logits."""
        return tuple(sorted(self.layers, key=lambda layer: (-layer.alone.net, layer.logits_db)))


@dataclass(frozen=True)
class Sensitivity:
    """The whole measurement.

    Attributes:
        reference: The width whose network, with nothing rounded, everything is compared with.
        images: How many were looked at.
        correct: Images that the reference names rightly.
        widths: The reports, from high to low.
    """

    reference: int
    images: int
    correct: int
    widths: tuple[WidthReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON objects."""
        widths = [
            {
                "bits": width.bits,
                "accuracy": width.correct / self.images,
                "deployed_accuracy": width.deployed / self.images,
                "worst_first": [layer.name for layer in width.worst_first()],
                "layers": [asdict(layer) for layer in width.layers],
            }
            for width in self.widths
        ]
        accuracy = self.correct / self.images
        return {"reference": self.reference, "images": self.images, "reference_accuracy": accuracy, "widths": widths}


def measure(
    net: MultiBitNet,
    split: Split | ImageFiles,
    *,
    bits: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Measure every unit at every width; the network's modes and width are put back.

    Args:
        net: The network.
        split: The images.
        bits: Widths below 32; all by default.
        batch_size: Images at a time; by default fewer, the larger they are.
        progress: Called with the finished steps and how many there are.

    Raises:
        InputError: No images, no quantized width, or weights that are not finite.
    """
    widths = tuple(sorted(check_widths(net, bits), reverse=True))
    if not widths:
        raise InputError("expected a network with a width below 32, got 32 bits alone; calibrate or train it with more")
    if not len(split):
        raise InputError("expected one image or more, got none; take another split")
    check_weights(net)
    size = batch_size or max(1, min(100, PIXELS // (net.image_shape[1] * net.image_shape[2])))
    work = _Work(net, widths)
    total = -(-len(split) // size) * len(widths) * len(work.units)
    done = 0
    for images, labels in batches(split, size, device=next(net.parameters()).device):
        check_images(net, images, size)
        with evaluating(net, widths[0]):
            plain = Mixture(net, widths[0]).whole(images, frozenset())
        work.start(plain, labels)
        for width in widths:
            with evaluating(net, width):
                for _ in work.width(width, images, plain, labels):
                    done += 1
                    progress(done, total)
    return work.result(len(split))


class _Work:
    """The tallies of all units and widths."""

    def __init__(self, net: MultiBitNet, widths: tuple[int, ...]) -> None:
        self.net, self.widths, self.units = net, widths, rounding_units(net)
        self.last = net.steps[-1].name
        self.tallies = {width: {name: Tally() for name in self.units} for width in widths}
        self.correct, self.logits_power = 0, 0.0
        self.rounded, self.deployed = dict.fromkeys(widths, 0), dict.fromkeys(widths, 0)

    def start(self, plain: dict[str, Value], labels: Tensor) -> None:
        """Take a batch of the reference."""
        logits = plain[self.last].real
        self.correct += int(_right(logits, labels).sum())
        self.logits_power += float(power(logits).sum())

    def width(self, bits: int, images: Tensor, plain: dict[str, Value], labels: Tensor):
        """Take a batch at one width; yields after each unit."""
        mixture, tallies = Mixture(self.net, bits), self.tallies[bits]
        everything = frozenset(self.units)
        full = mixture.whole(images, everything, see=lambda name, u: self._count(bits, name, u, plain[name].real))
        logits, full_logits = plain[self.last].real, full[self.last].real
        right, full_right = _right(logits, labels), _right(full_logits, labels)
        self.rounded[bits] += int(full_right.sum())
        self.deployed[bits] += int(_right(self.net(images), labels).sum())
        for name, tally in tallies.items():
            real = plain[name].real
            alone = mixture.exchanged(plain, name, rounded=True)
            left = mixture.exchanged(full, name, rounded=False)
            tally.signal = tally.signal + power(real)
            tally.noise = tally.noise + power(full[name].real - real)
            tally.own_noise = tally.own_noise + power(alone[name].real - real)
            tally.logits_noise += float(power(alone[self.last].real - logits).sum())
            lost, gained = _changes(right, _right(alone[self.last].real, labels))
            tally.lost, tally.gained = tally.lost + lost, tally.gained + gained
            lost, gained = _changes(full_right, _right(left[self.last].real, labels))
            tally.left_lost, tally.left_gained = tally.left_lost + lost, tally.left_gained + gained
            yield

    def _count(self, bits: int, name: str, u: Tensor, real: Tensor) -> None:
        output, tally = self.units[name].output, self.tallies[bits][name]
        assert output is not None
        lo, hi = output.range(bits)
        tally.codes = tally.codes + code_counts(u, lo, hi)
        tally.float_codes = tally.float_codes + code_counts(real / output.grid.step(bits), lo, hi)

    def result(self, images: int) -> Sensitivity:
        """Return what was measured."""
        reports = tuple(
            WidthReport(
                bits,
                self.rounded[bits],
                self.deployed[bits],
                tuple(self._layer(bits, name, tally) for name, tally in self.tallies[bits].items()),
            )
            for bits in self.widths
        )
        return Sensitivity(reference_bits(self.net), images, self.correct, reports)

    def _layer(self, bits: int, name: str, tally: Tally) -> Layer:
        unit = self.units[name]
        weights = weights_of(unit, bits) if isinstance(unit, WeightedUnit) else None
        codes = _codes(unit, bits, tally)
        signal = _total(tally.signal)
        return Layer(
            name=name,
            kind=type(unit).__name__.removesuffix("Unit").lower(),
            weight_bits=unit.weight_bits[bits] if isinstance(unit, WeightedUnit) else None,
            output_db=decibels(signal, _total(tally.noise)),
            own_db=decibels(signal, _total(tally.own_noise)),
            logits_db=decibels(self.logits_power, tally.logits_noise),
            weight_db=None if weights is None else weights.db,
            alone=Answers(tally.lost, tally.gained),
            left_out=Answers(tally.left_lost, tally.left_gained),
            saturated=None if codes is None else codes.saturated,
            worst=_worst(tally, weights),
            codes=codes,
            weights=None if weights is None else weights.bins,
        )


def _codes(unit: AbstractUnit, bits: int, tally: Tally) -> Codes | None:
    if unit.output is None:
        return None
    assert isinstance(tally.codes, Tensor) and isinstance(tally.float_codes, Tensor)
    step = float(unit.output.grid.step(bits).detach())
    low = unit.output.range(bits)[0] - 1
    return Codes(step, low, tuple(tally.codes.tolist()), tuple(tally.float_codes.tolist()))


def _worst(tally: Tally, weights: Weights | None) -> tuple[Channel, ...]:
    assert isinstance(tally.signal, Tensor) and isinstance(tally.own_noise, Tensor)
    pairs = zip(tally.signal.tolist(), tally.own_noise.tolist(), strict=True)
    own = sorted((decibels(signal, noise), channel) for channel, (signal, noise) in enumerate(pairs))
    if weights is None:
        return tuple(Channel(channel, db, None, None, None) for db, channel in own[:WORST])
    top = max(weights.channel_max)
    return tuple(
        Channel(channel, db, weights.channel_db[channel], weights.channel_max[channel], top)
        for db, channel in own[:WORST]
    )


def _total(x: Tensor | float) -> float:
    return float(x.sum()) if isinstance(x, Tensor) else x


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(1) == labels


def _changes(before: Tensor, after: Tensor) -> tuple[int, int]:
    return int((before & ~after).sum()), int((~before & after).sum())
