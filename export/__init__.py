"""The integer world: the integer graph, its reference interpreter, one file per dialect, and the proof.

Only NumPy is loaded with it; onnx, onnxruntime and torch are when a function needs them.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from .artefact import Artefact as Artefact
from .artefact import load as load
from .artefact import save as save
from .certificate import Certificate as Certificate
from .dialects import TARGETS as TARGETS
from .dialects import build as build
from .graph import IntegerGraph as IntegerGraph
from .verify import verify as verify

if TYPE_CHECKING:
    from .executor import TorchExecutor as TorchExecutor
    from .lower import lower as lower

_LAZY = {"lower": "lower", "TorchExecutor": "executor"}  # these load torch


class _Exports(ModuleType):
    """Keeps `lower` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, a lazily loaded one to the thing and not to its module."""
        super().__setattr__(name, getattr(value, name) if name in _LAZY and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Exports


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
