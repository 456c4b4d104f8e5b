"""OpenVINO leaves the process without a stack for signals; this keeps the one that there was.

While a model is compiled, OpenVINO 2026.4 gives the calling thread an alternative signal stack of its own, and frees it
with the compiled model. It then puts back what stood there before: with two compiled models, the first one's stack,
freed too. Where a program has an alternative stack (faulthandler makes one; pytest and Jupyter switch it on), Python
handles signals on it, so that the next Ctrl-C after that is a segmentation fault.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def exchanged(new: Stack | None = None) -> Stack | None:
    """Return the thread's alternative signal stack, after putting `new` there; None on other systems than Linux."""
    if sys.platform != "linux":
        return None
    before = Stack()
    ctypes.CDLL(None).sigaltstack(ctypes.byref(new) if new else None, ctypes.byref(before))
    return before


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give the thread its alternative signal stack back at the end."""
    before = exchanged()
    try:
        yield
    finally:
        exchanged(before)
