"""Networks for small images, torchvision's by name, and the user's own by import path."""

import contextlib
import importlib
import inspect
from collections.abc import Callable

from torch import nn

from edgeq.errors import InputError
from edgeq.models.mobilenet import mobilenet_v2 as mobilenet_v2
from edgeq.models.resnet import resnet8 as resnet8
from edgeq.models.resnet import resnet20 as resnet20
from edgeq.models.resnet import resnet32 as resnet32
from edgeq.models.resnet import resnet56 as resnet56
from edgeq.models.vgg import vgg16_bn as vgg16_bn

BUILT_IN = (resnet8, resnet20, resnet32, resnet56, vgg16_bn, mobilenet_v2)


def build(name: str, *, classes: int) -> nn.Module:
    """Return a network by name: a built-in one, `torchvision/NAME`, or `package.module:factory`.

    A factory is called with `classes=` if it takes that, else without arguments; torchvision's with `num_classes=`.
    No weights are loaded.
    """
    for factory in BUILT_IN:
        if factory.__name__ == name:
            return factory(classes=classes)
    if name.startswith("torchvision/"):
        return _torchvision(name.removeprefix("torchvision/"), classes)
    if ":" in name:
        return _own(name, classes)
    known = ", ".join(f.__name__ for f in BUILT_IN)
    raise InputError(f"expected a model out of {known}, torchvision/NAME or package.module:factory, got {name!r}")


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise InputError(f"expected the name of a torchvision classification model, got {name!r}; for example resnet18")
    return models.get_model(name, weights=None, num_classes=classes)


def _own(name: str, classes: int) -> nn.Module:
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise InputError(f"expected a model as package.module:factory, got {name!r}; write the import path in full")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"expected {name!r} to name an importable factory, got: {error}; check PYTHONPATH") from error
    if not callable(factory):
        raise InputError(f"expected {name!r} to name a function or class, got a {type(factory).__name__}; name another")
    model = factory(**_arguments(factory, name, classes))
    if not isinstance(model, nn.Module):
        raise InputError(f"expected {name!r} to return a torch.nn.Module, got {type(model).__name__}")
    return model


def _arguments(factory: Callable[..., object], name: str, classes: int) -> dict[str, int]:
    """Return what a factory is called with; its signature decides, so that errors within it stay its own."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError) as error:  # written in C
        raise InputError(f"expected {name!r} to have a signature, got: {error}; wrap it in a function") from error
    for arguments in ({"classes": classes}, {}):
        with contextlib.suppress(TypeError):
            signature.bind(**arguments)
            return arguments
    raise InputError(
        f"expected {name!r} to take classes= or nothing, got the arguments {signature}; name a function that fills in "
        "the others"
    )
