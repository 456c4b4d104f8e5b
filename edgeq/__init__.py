"""edgeq: one vision network at 32, 8, 5, 4 and 2 bits, hardened, and shipped as integer-only models.

The public names are loaded when they are first used, so that `import edgeq` stays fast and does not load torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeq import calib as calib
    from edgeq import export as export
    from edgeq.quant.bits import at_bits as at_bits
    from edgeq.quant.convert import multibit as multibit
    from edgeq.training import train as train

__version__ = "0.1.0"

_HOME = {"at_bits": "edgeq.quant.bits", "multibit": "edgeq.quant.convert", "train": "edgeq.training"}
_SUBMODULES = ("calib", "export")

__all__ = ["__version__", "at_bits", "calib", "export", "multibit", "train"]


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"edgeq.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # the next use finds the name at once
        return value
    raise AttributeError(f"module 'edgeq' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
