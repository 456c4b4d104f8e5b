"""One network in which some units run in real numbers and the others at a width.

A unit in real numbers gives y = relu(gain (w . x) + shift) with the float weights and the reference's BatchNorm (32
bits, or the widest width where there is no 32). At b bits it gives

    s_out clamp(round(y' / s_out)),   y' = relu(gain_b (s_w q_w . x) + shift_b)

with the BatchNorm, the steps and the weight codes of b bits, and its b-bit readers get the narrow copy of that. This is
fake quantization with running statistics: the deployed arithmetic but for its short multipliers and whole biases, which
only exist between codes. Pixels are whole in both, so the image costs nothing.
"""

from collections.abc import Callable, Mapping

from jaxtyping import UInt8
from torch import Tensor

from edgeq.calib.walk import unrounded
from edgeq.quant.bits import FLOAT_BITS
from edgeq.quant.network import IMAGE, MultiBitNet
from edgeq.quant.quantizer import quantize
from edgeq.quant.units import AbstractUnit, InputUnit, Value
from edgeq.quant.weighted import WeightedUnit

See = Callable[[str, Tensor], None]


def reference_bits(net: MultiBitNet) -> int:
    """Return the width whose BatchNorm the unrounded network uses."""
    return FLOAT_BITS if FLOAT_BITS in net.bits else net.bits[0]


def rounding_units(net: MultiBitNet) -> dict[str, AbstractUnit]:
    """Return what can be quantized alone, in order: layers, and joins that write on a grid of their own."""
    units = {step.name: net.units[step.name] for step in net.steps}
    return {name: unit for name, unit in units.items() if _rounds(unit)}  # type: ignore[misc]


class Mixture:
    """Runs a network unit by unit; use it inside `edgeq.calib.walk.evaluating(net, bits)`.

    Args:
        net: The network.
        bits: The width of the units that are quantized.
    """

    def __init__(self, net: MultiBitNet, bits: int) -> None:
        self.net, self.bits, self.reference = net, bits, reference_bits(net)

    def whole(
        self, image: UInt8[Tensor, "n c h w"], rounded: frozenset[str], *, see: See | None = None
    ) -> dict[str, Value]:
        """Return every value when the units `rounded` run at the width and the others in real numbers.

        Args:
            image: The images.
            rounded: Names out of `rounding_units`.
            see: Called with each rounded unit's name and its unrounded result in units of its step.
        """
        values = {IMAGE: Value(image, None)}
        for step in self.net.steps:
            inputs = tuple(values[name] for name in step.inputs)
            values[step.name] = self._run(step.name, inputs, step.name in rounded, see)
        return values

    def exchanged(self, values: Mapping[str, Value], name: str, *, rounded: bool) -> dict[str, Value]:
        """Return the values that change when unit `name` is quantized alone (or, with rounded=False, left out).

        Args:
            values: All values of the network with nothing rounded (or with everything rounded).
            name: The unit.
            rounded: Whether that unit is quantized; all others are the other way round.
        """
        step = next(step for step in self.net.steps if step.name == name)
        inputs = tuple(values[source] for source in step.inputs)
        return self.following(values, name, self._run(name, inputs, rounded, None), rounded=not rounded)

    def following(
        self, values: Mapping[str, Value], name: str, value: Value, *, rounded: bool = False
    ) -> dict[str, Value]:
        """Return the values that change when one of them does, that one included.

        Args:
            values: All values of the network.
            name: The one that changes.
            value: What it becomes.
            rounded: Whether the units behind it run at the width, or in real numbers.
        """
        fresh = {name: value}
        for step in self.net.steps:
            if step.name != name and any(source in fresh for source in step.inputs):
                inputs = tuple(fresh.get(source, values[source]) for source in step.inputs)
                fresh[step.name] = self._run(step.name, inputs, rounded, None)
        return fresh

    def _run(self, name: str, inputs: tuple[Value, ...], rounded: bool, see: See | None) -> Value:
        unit = self.net.units[name]
        assert isinstance(unit, AbstractUnit)
        if isinstance(unit, InputUnit):
            return Value(unit(*inputs).real, None)
        if not _rounds(unit):
            return unit(*inputs)
        if not rounded:
            return Value(unrounded(unit, inputs, self.reference, round_weights=False), None)
        y = unrounded(unit, inputs, self.bits, round_weights=True)
        if unit.output is None:
            return Value(y, None)
        step, (lo, hi) = unit.output.grid.step(self.bits), unit.output.range(self.bits)
        u = y / step
        if see is not None:
            see(name, u)
        return Value(quantize(u, lo, hi), step, max(hi, -lo), unit.output.grid)


def _rounds(unit: object) -> bool:
    return isinstance(unit, AbstractUnit) and (unit.output is not None or isinstance(unit, WeightedUnit))
