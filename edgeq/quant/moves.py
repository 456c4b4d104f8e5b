"""Operators that move values and never change one: reshapes, transpositions, slices, upsampling, zeros in between."""

from jaxtyping import Float
from torch import Tensor

from edgeq.export.moves import Geometry, Reshape, Slice, Spread, Transpose, Upsample
from edgeq.quant.bits import Width
from edgeq.quant.units import AbstractUnit, Value


class MoveUnit(AbstractUnit):
    """One move; codes stay on the grid of its input."""

    def __init__(self, width: Width, *, how: Geometry) -> None:
        super().__init__(width, None)
        self.how = how

    def forward(self, *inputs: Value) -> Value:
        """Move."""
        (x,) = inputs
        return x._replace(codes=moved(x.codes, self.how))


def moved(x: Float[Tensor, "n c *dims"], how: Geometry) -> Float[Tensor, "n k *moved"]:
    """Return a tensor after a move; see `edgeq.export.moves` for what each one is."""
    match how:
        case Reshape():
            return x.reshape(len(x), *how.shape)
        case Transpose():
            return x.permute(0, *(axis + 1 for axis in how.order))
        case Slice():
            return x.narrow(how.axis + 1, how.start, how.stop - how.start)
        case Upsample():
            n, c, h, w = x.shape
            grown = x[:, :, :, None, :, None].expand(n, c, h, how.factors[0], w, how.factors[1])
            return grown.reshape(n, *how.result((c, h, w)))
        case Spread():
            y = x.new_zeros((len(x), *how.result(tuple(x.shape[1:]))))
            y[:, :, :: how.stride[0], :: how.stride[1]] = x
            return y
