"""What post-training passes add to one layer at one width, while its float weights stay shared by all widths.

A width's weight codes are round((w + a_b) / s_b), its outputs gain * (w . x) + shift + c_b. The offset a_b says which
way each weight is rounded, c_b takes out a mean error. Both are buffers that exist only where a pass made them: the
state dict of any other network has no entry for them.
"""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

WEIGHT = "weight"
SHIFT = "shift"


class Corrections(nn.Module):
    """The offsets of one layer, per width; none to begin with."""

    def __init__(self, weight: Float[Tensor, "out inputs *kernel"], bits: Iterable[int]) -> None:
        super().__init__()
        shapes = {WEIGHT: weight.shape, SHIFT: weight.shape[:1]}
        self.shapes = {f"{kind}_{b}": shape for kind, shape in shapes.items() for b in bits}
        self.register_buffer("place", weight.new_empty(0), persistent=False)  # follows the network to its device

    def get(self, kind: str, bits: int) -> Tensor | None:
        """Return an offset, or None where there is none."""
        return self._buffers.get(f"{kind}_{bits}")

    def set(self, kind: str, bits: int, value: Tensor) -> None:
        """Store an offset, in float32 beside the weights."""
        self._room(f"{kind}_{bits}").copy_(value)

    def replace(self, kind: str, bits: int, value: Tensor | None) -> None:
        """Store an offset, or drop it."""
        self._buffers.pop(f"{kind}_{bits}", None)
        if value is not None:
            self.set(kind, bits, value)

    def clear(self, bits: int) -> None:
        """Drop a width's offsets."""
        for kind in (WEIGHT, SHIFT):
            self._buffers.pop(f"{kind}_{bits}", None)

    def expect(self, names: Iterable[str]) -> None:
        """Hold exactly these offsets, for a state dict to fill; names that mean nothing here are left out."""
        for name in self.shapes:
            self._buffers.pop(name, None)
        for name in self.shapes.keys() & set(names):
            self._room(name)

    def _room(self, name: str) -> Tensor:
        place = self._buffers["place"]
        assert place is not None
        self.register_buffer(name, place.new_zeros(self.shapes[name]))
        return self._buffers[name]  # type: ignore[return-value]

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self.expect(name.removeprefix(prefix) for name in state_dict if name.startswith(prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


def make_room(network: nn.Module, names: Iterable[str]) -> None:
    """Give a network the offsets that a state dict with these names brings."""
    names = tuple(names)
    for prefix, module in network.named_modules():
        if isinstance(module, Corrections):
            module.expect(name.removeprefix(prefix + ".") for name in names if name.startswith(prefix + "."))


def plus(value: Tensor, offset: Tensor | None) -> Tensor:
    """Return value + offset, or the value itself where there is no offset."""
    return value if offset is None else value + offset.to(value.dtype)


def per_channel(offset: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a per-channel offset in the shape that broadcasts over activations."""
    return None if offset is None else offset.reshape((1, -1) + (1,) * (like.dim() - 2))
