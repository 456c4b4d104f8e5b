from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.defenses import Turns
from edgeq.errors import InputError

ACTIVE = (32, 8, 5, 4, 3, 2)
WIDTHS = st.lists(st.sampled_from([32, *range(2, 9)]), min_size=1, max_size=6, unique=True).map(
    lambda found: tuple(sorted(found, reverse=True))
)


def test_a_step_of_some_widths_has_the_highest_and_the_lowest() -> None:
    steps = [Turns(4).drawn(ACTIVE, (0, 0, batch, 0)) for batch in range(40)]
    assert all(step[0] == 32 and step[-1] == 2 and len(set(step)) == 4 for step in steps)
    assert {bits for step in steps for bits in step} == set(ACTIVE)
    assert Turns(4).rounds(ACTIVE) == 1


def test_pairs_take_turns() -> None:
    steps = [Turns(2).drawn(ACTIVE, (0, 0, batch, 0)) for batch in range(15)]
    assert sorted(steps) == sorted(combinations(ACTIVE, 2))
    assert Turns(2).rounds(ACTIVE) == 2 and Turns(2, passes=0).rounds(ACTIVE) == 15
    assert Turns(2).drawn((32, 8), (0, 0, 3, 0)) == (32, 8) and Turns(2).rounds((32, 8)) == 1


@given(active=WIDTHS, widths=st.integers(0, 8), passes=st.integers(0, 9), seed=st.integers(0, 99))
def test_every_width_has_its_turn(active: tuple[int, ...], widths: int, passes: int, seed: int) -> None:
    turns = Turns(widths, passes)
    steps = [turns.drawn(active, (seed, 0, batch, 0)) for batch in range(100)]
    assert steps == [turns.drawn(active, (seed, 0, batch, 3)) for batch in range(100)]  # whatever the process
    assert all(tuple(sorted(step, reverse=True)) == step and set(step) <= set(active) for step in steps)
    assert all(len(step) == (min(widths, len(active)) or len(active)) for step in steps)
    assert {bits for step in steps for bits in step} == set(active)
    assert turns.all_at_once(active) == all(step == active for step in steps)
    assert 1 <= turns.rounds(active) <= max(1, passes or 99)


@given(active=WIDTHS, widths=st.integers(0, 8), batches=st.integers(1, 3))
def test_every_width_has_its_turn_however_few_batches_an_epoch_has(
    active: tuple[int, ...], widths: int, batches: int
) -> None:
    keys = [(0, epoch, batch, 0) for epoch in range(60) for batch in range(batches)]
    steps = [Turns(widths).drawn(active, key) for key in keys]
    assert {bits for step in steps for bits in step} == set(active)
    if widths in (1, 2):
        often = [sum(bits in step for step in steps) for bits in active]
        assert max(often) - min(often) <= len(steps) / 10


@pytest.mark.parametrize("wrong", [{"widths": -1}, {"passes": -1}])
def test_negative_counts_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="0 or more"):
        Turns(**wrong)
