import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeq.data.stream import random_part

UNIT = st.floats(0, 1, exclude_max=True, width=32)


@given(
    row=st.lists(UNIT, min_size=8, max_size=8), width=st.integers(1, 50), height=st.integers(1, 50), size=st.just(16)
)
def test_a_random_part_lies_inside_any_image(row: list[float], width: int, height: int, size: int) -> None:
    image = Image.new("RGB", (width, height), (10, 20, 30))
    part = random_part(image, row, size=size)
    assert part.shape == (16, 16, 3)
    assert (part == [10, 20, 30]).all()  # nothing from outside


def test_parts_differ_in_place_and_size() -> None:
    ramp = np.stack(np.broadcast_arrays(np.arange(64) * 4, np.arange(64)[:, None] * 4, 0), 2).astype(np.uint8)
    rows = np.random.default_rng(0).random((50, 8)).tolist()
    parts = [random_part(Image.fromarray(ramp), row, size=16).astype(int) for row in rows]
    assert len({part.tobytes() for part in parts}) == 50
    spans = [part[0, -1, 0] - part[0, 0, 0] for part in parts]
    assert min(spans) > 0.35 * 252 and max(spans) > 0.8 * 252  # an area of 0.25 has sides of about 0.5
