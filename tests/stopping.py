"""A training is asked to stop at a known place."""

import itertools
from collections.abc import Callable


def on_call(n: int) -> Callable[[], bool]:
    """Return a `stop` that says yes the n-th time it is asked, and only then."""
    calls = itertools.count(1)
    return lambda: next(calls) == n
