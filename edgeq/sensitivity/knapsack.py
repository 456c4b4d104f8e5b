"""One option per item, the sum of costs within a budget, the sum of losses as small as it can be.

Items are taken one by one, keeping every state (cost so far, loss so far) that no cheaper or equal state beats: this is
exact, for costs of any size. Where more states would be kept than `MOST`, the range of costs is cut into that many
equal parts and each part keeps its best state, so the choice is within the budget still, but may miss the optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 20_000


@dataclass(frozen=True)
class Choice:
    """The option of each item; `exact` unless states had to be dropped."""

    options: tuple[int, ...]
    exact: bool


def knapsack(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int, *, most: int = MOST
) -> Choice | None:
    """Return the choice of least loss within the budget; None where the cheapest one is beyond it.

    Args:
        costs: Of each item's options; 0 or more.
        losses: Of the same options.
        budget: For the sum of costs.
        most: States to keep.
    """
    least = [min(options) for options in costs]
    rest = sum(least)
    if rest > budget:
        return None
    cost, loss, exact = np.zeros(1, np.int64), np.zeros(1), True
    back: list[tuple[np.ndarray, int]] = []
    for item, options in enumerate(costs):
        rest -= least[item]
        sums = (cost[:, None] + np.asarray(options, np.int64)).ravel()
        total = (loss[:, None] + np.asarray(losses[item], np.float64)).ravel()
        kept = _best(sums, total, budget - rest)
        if len(kept) > most:
            kept, exact = _thinned(sums, kept, most), False
        cost, loss = sums[kept], total[kept]
        back.append((kept, len(options)))
    state, options = len(loss) - 1, []  # the last state costs most and loses least
    for kept, count in reversed(back):
        before, option = divmod(int(kept[state]), count)
        options.append(option)
        state = before
    return Choice(tuple(reversed(options)), exact)


def _best(cost: np.ndarray, loss: np.ndarray, budget: int) -> np.ndarray:
    """Return the states within the budget that lose less than all cheaper ones, from cheap to dear."""
    order = np.lexsort((loss, cost))
    order = order[cost[order] <= budget]
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    return order[loss[order] < before]


def _thinned(cost: np.ndarray, kept: np.ndarray, most: int) -> np.ndarray:
    """Return the cheapest state and the best one of each of `most` - 1 equal parts of the range of costs."""
    low, high = int(cost[kept[0]]), int(cost[kept[-1]])
    part = (cost[kept] - low) * (most - 1) // (high - low + 1)
    last = np.append(part[1:] != part[:-1], True)
    last[0] = True
    return kept[last]
