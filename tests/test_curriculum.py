"""The curriculum: which widths train in which epoch."""

import pytest

from edgeq.curriculum import Curriculum


@pytest.mark.parametrize(
    ("bits", "epochs", "expected"),
    [
        ((32, 8, 5, 4, 2), 10, [(32, 8), (32, 8, 5), (32, 8, 5, 4), (32, 8, 5, 4, 2)]),
        ((4,), 3, [(4,), (4,), (4,)]),
        ((5, 4), 10, [(5,), (5, 4), (5, 4)]),
        ((32, 8, 2), 1, [(32, 8, 2)]),
    ],
)
def test_widths_enter_from_high_to_low(bits: tuple[int, ...], epochs: int, expected: list[tuple[int, ...]]) -> None:
    curriculum = Curriculum()
    assert [curriculum.active(bits, epochs, e) for e in range(len(expected))] == expected
    assert curriculum.active(bits, epochs, epochs - 1) == bits
    assert Curriculum(enabled=False).active(bits, epochs, 0) == bits


def test_no_width_enters_after_batchnorm_froze() -> None:
    curriculum = Curriculum(stage=0.4)
    assert curriculum.active((32, 8, 5, 4, 2), 10, 8, frozen_from=9) == (32, 8, 5, 4, 2)
    assert curriculum.active((32, 8, 5, 4, 2), 10, 7, frozen_from=9) == (32, 8, 5)
