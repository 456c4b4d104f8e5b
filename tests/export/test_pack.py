import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from edgeq.errors import InputError
from edgeq.export.pack import pack, packed_size, planes, unpack

WIDTHS = st.integers(2, 8)


@given(bits=WIDTHS, data=st.data())
def test_unpack_gives_back_what_was_packed(bits: int, data: st.DataObject) -> None:
    limit = 1 << (bits - 1)
    values = np.array(data.draw(st.lists(st.integers(-limit, limit - 1), max_size=70)), np.int8)
    packed = pack(values, bits)
    assert len(packed) == packed_size(len(values), bits)
    np.testing.assert_array_equal(unpack(packed, bits, len(values)), values)


@given(bits=WIDTHS, words=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_bit_is_used_where_the_count_is_a_multiple_of_8(bits: int, words: int, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, words * bits).astype(np.uint8)
    np.testing.assert_array_equal(pack(unpack(data, bits, 8 * words), bits), data)


@given(bits=WIDTHS, count=st.integers(0, 100))
def test_size_is_the_bits_rounded_up_per_plane(bits: int, count: int) -> None:
    assert packed_size(count, bits) == sum(math.ceil(count * width / 8) for width in planes(bits))
    assert 0 <= packed_size(count, bits) - count * bits / 8 < 3


@pytest.mark.parametrize(("bits", "dtype"), [(2, ml_dtypes.int2), (4, ml_dtypes.int4)])
def test_bytes_are_those_of_the_onnx_type(bits: int, dtype: type) -> None:
    values = np.random.default_rng(0).integers(-(1 << (bits - 1)), 1 << (bits - 1), 37).astype(np.int8)
    assert numpy_helper.from_array(values.astype(dtype)).raw_data == pack(values, bits).tobytes()


@pytest.mark.parametrize("bits", [1, 9, 32])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match=f"got {bits}"):
        pack(np.zeros(3, np.int8), bits)


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"-8\.\.7, got 0\.\.8"):
        pack(np.array([0, 8], np.int8), 4)


def test_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match="expected 7 bytes"):
        unpack(np.zeros(5, np.uint8), 5, 9)
