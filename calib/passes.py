"""Post-training passes around a calibration, each with its effect on the logits.

The order is fixed, whatever order they are named in, because each one builds on those before it:

    equalise    moves scale between layers, so everything is calibrated again after it
    rounding    needs the steps, and decides on what the layers really read
    bias        takes out the mean errors that are left, those of rounding too
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edgeq.errors import InputError
from edgeq.quant.network import MultiBitNet

from .bias import correct_bias
from .equalise import equalise
from .rounding import learn_rounding
from .walk import Images, evaluating, float_source, float_units, parts

PASSES: tuple[str, ...] = ("equalise", "rounding", "bias")


@dataclass(frozen=True)
class PassReport:
    """What one pass did to one width, on the calibration images.

    Attributes:
        name: The pass.
        bits: The width.
        mse_before: Mean squared difference to the float network's logits, before the pass.
        mse_after: The same after it.
        sqnr_db_before: Power of the float logits over that difference, in decibels.
        sqnr_db_after: The same after the pass.
        layers: What the pass says about each layer.
    """

    name: str
    bits: int
    mse_before: float
    mse_after: float
    sqnr_db_before: float
    sqnr_db_after: float
    layers: object


def check_passes(model: MultiBitNet, passes: tuple[str, ...], widths: tuple[int, ...]) -> tuple[str, ...]:
    """Return the passes in their order, or say what is wrong with them."""
    wrong = [name for name in passes if name not in PASSES]
    if wrong or isinstance(passes, str) or len(set(passes)) != len(passes):
        raise InputError(f"expected passes out of {list(PASSES)}, each once, got {passes!r}; name some of them")
    if "equalise" in passes and set(widths) != set(model.quantized_bits()):
        raise InputError(
            f"expected all widths {list(model.quantized_bits())} with the pass 'equalise', got {list(widths)}; it "
            "changes the weights that they share, so calibrate all of them"
        )
    return tuple(name for name in PASSES if name in passes)


def run_passes(
    model: MultiBitNet,
    images: Images,
    *,
    passes: tuple[str, ...],
    widths: tuple[int, ...],
    calibrate: Callable[[], None],
    normalise: Callable[[int], None],
    batch_size: int,
) -> tuple[PassReport, ...]:
    """Calibrate and run the passes; an exception or Ctrl-C on the way leaves the network as it was.

    Args:
        model: A multi-bit network.
        images: The calibration images.
        passes: Names, in order.
        widths: The widths.
        calibrate: Sets all steps; called again after equalisation.
        normalise: Measures a width's BatchNorm again, which learned rounding leaves behind: it was measured on weights
            rounded to nearest, whose sums are others.
        batch_size: Images per forward pass.
    """
    reports: list[PassReport] = []
    with restored_on_error(model):
        calibrate()
        expected = float_logits(model, images, batch_size=batch_size)
        errors = {b: _error(model, images, b, expected, batch_size) for b in widths}
        power = float(expected.square().mean())
        for name in passes:
            shared = None
            if name == "equalise":
                shared = [asdict(pair) for pair in equalise(model, images, batch_size=batch_size)]
                calibrate()
            for b in widths:
                layers: object = shared
                if name == "rounding":
                    centred = "bias" in passes
                    found = learn_rounding(model, images, bits=b, centred=centred, batch_size=batch_size)
                    layers = [asdict(layer) for layer in found]
                    normalise(b)
                elif name == "bias":
                    layers = correct_bias(model, images, bits=b, batch_size=batch_size)
                was, now = errors[b], _error(model, images, b, expected, batch_size)
                errors[b] = now
                reports.append(PassReport(name, b, was, now, _decibels(power, was), _decibels(power, now), layers))
    return tuple(reports)


@contextmanager
def restored_on_error(model: MultiBitNet) -> Iterator[None]:
    """Put all tensors back if the block does not end well."""
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    except BaseException:
        model.load_state_dict(before)
        raise


def float_logits(model: MultiBitNet, images: Images, *, batch_size: int) -> Float[Tensor, "n classes *plane"]:
    """Return the logits without any rounding."""
    logits = []
    with evaluating(model, float_source(model)):
        for part in parts(images, batch_size):
            for name, _, _, real in float_units(model, part):
                if name == model.steps[-1].name:
                    logits.append(real)
    return torch.cat(logits)


def _error(model: MultiBitNet, images: Images, bits: int, expected: Tensor, batch_size: int) -> float:
    with evaluating(model, bits):
        got = torch.cat([model(part.to(expected.device)) for part in parts(images, batch_size)])
    return float((got.double() - expected.double()).square().mean())


def _decibels(power: float, error: float) -> float:
    """Return 10 log10(power / error), within 200 dB either way so that a report stays valid JSON."""
    tiny = 1e-300
    return max(-200.0, min(200.0, 10 * math.log10(max(power, tiny) / max(error, tiny))))
