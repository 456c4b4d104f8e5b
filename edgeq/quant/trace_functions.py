"""Which calls and modules of a traced network are pointwise functions, and which operators have no integer form."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeq.errors import InputError
from edgeq.quant.tables import Levels, Pointwise

# attributes of the module that are the function's arguments, in its order
MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.CELU: ("celu", ("alpha",)),
    nn.ELU: ("elu", ("alpha",)),
    nn.GELU: ("gelu", ("approximate",)),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    Levels: ("levels", ("count",)),
    nn.LogSigmoid: ("logsigmoid", ()),
    nn.Mish: ("mish", ()),
    nn.SELU: ("selu", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.SiLU: ("silu", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Softsign: ("softsign", ()),
    nn.Tanh: ("tanh", ()),
}
# argument names and defaults of the function, after the value
CALLS: dict[Any, tuple[str, dict[str, int | float | str]]] = {
    F.celu: ("celu", {"alpha": 1.0}),
    F.elu: ("elu", {"alpha": 1.0}),
    F.gelu: ("gelu", {"approximate": "none"}),
    F.hardsigmoid: ("hardsigmoid", {}),
    F.hardswish: ("hardswish", {}),
    F.hardtanh: ("hardtanh", {"min_val": -1.0, "max_val": 1.0}),
    F.leaky_relu: ("leaky_relu", {"negative_slope": 0.01}),
    F.logsigmoid: ("logsigmoid", {}),
    F.mish: ("mish", {}),
    F.selu: ("selu", {}),
    F.sigmoid: ("sigmoid", {}),
    torch.sigmoid: ("sigmoid", {}),
    "sigmoid": ("sigmoid", {}),
    F.silu: ("silu", {}),
    F.softplus: ("softplus", {"beta": 1.0, "threshold": 20.0}),
    F.softsign: ("softsign", {}),
    F.tanh: ("tanh", {}),
    torch.tanh: ("tanh", {}),
    "tanh": ("tanh", {}),
}
NO_INTEGER_FORM: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: (
        "its softmax and its product of two activations need more than 8-bit codes; keep the transformer in float, or "
        "take a convolutional network"
    ),
    nn.LayerNorm: "it divides by a deviation that each image decides; train with BatchNorm, which folds into a layer",
    nn.GroupNorm: "it divides by a deviation that each image decides; train with BatchNorm, which folds into a layer",
    nn.InstanceNorm2d: "it divides by a deviation that each image decides; train with BatchNorm",
    nn.LocalResponseNorm: "it divides by neighbouring channels; train with BatchNorm",
    nn.Softmax: "logits need none, for it keeps their order; inside a network, gate by Sigmoid or Hardsigmoid",
    nn.PReLU: "its slope may differ by channel; use LeakyReLU",
}


def function_of(node: fx.Node, module: nn.Module | None) -> Pointwise | None:
    """Return the pointwise function that a node computes, if it is one."""
    if module is not None:
        if type(module) not in MODULES:
            return None
        name, attributes = MODULES[type(module)]
        return Pointwise(name, tuple(getattr(module, attribute) for attribute in attributes))
    if node.target not in CALLS:
        return None
    name, defaults = CALLS[node.target]
    given = dict(zip(defaults, node.args[1:], strict=False))
    return Pointwise(name, tuple(node.kwargs.get(key, given.get(key, value)) for key, value in defaults.items()))  # type: ignore[arg-type]


def check_operators(model: nn.Module) -> None:
    """Refuse modules that have no integer form, before their insides stop the trace with some other message."""
    for kind, reason in NO_INTEGER_FORM.items():
        for path, module in model.named_modules():
            if isinstance(module, kind):
                raise InputError(
                    f"expected operators with an exact integer form, got {kind.__name__} at {path!r}: {reason}"
                )
