"""The array core: what NumPy writes comes back equal; nothing outside the table or the caps becomes an array."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_vla.serve.codec import npy
from edge_vla.serve.codec.ndarray import DTYPES, array, layout
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, RefusedError

LIMITS = Limits()
ARRAYS = hnp.arrays(
    st.sampled_from(sorted({dtype.str for dtype in DTYPES.values()})),
    hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4),
)


@given(ARRAYS)
def test_what_numpy_writes_is_read(values: np.ndarray) -> None:
    found = array(values.tobytes(), layout(values.dtype.str, list(values.shape), LIMITS))
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values)


@given(ARRAYS, st.booleans())
def test_a_npy_file_is_read_and_written_as_numpy_does(values: np.ndarray, fortran: bool) -> None:
    written = io.BytesIO()
    np.save(written, np.asfortranarray(values) if fortran else values, allow_pickle=False)
    found = npy.decode(written.getvalue(), LIMITS)
    np.testing.assert_array_equal(found, values)
    assert npy.encode(values) == _saved(values)


def _saved(values: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, values, allow_pickle=False)
    return written.getvalue()


def test_npy_version_2_is_read() -> None:
    written = io.BytesIO()
    np.lib.format.write_array(written, np.arange(6).reshape(2, 3), version=(2, 0))
    np.testing.assert_array_equal(npy.decode(written.getvalue(), LIMITS), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    "dtype", ["|O", "|V8", "<c8", "<c16", "<U4", "|S3", "<M8[s]", "<m8", "<f16", "|u2", "object", "", "f4,f4", None, 3]
)
def test_other_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises(RefusedError) as refused:
        layout(dtype, [1], LIMITS)
    assert refused.value.code is Code.MALFORMED


@pytest.mark.parametrize("shape", [[-1], [True], [1.0], ["3"], "33", None, {"a": 1}, [2, None]])
def test_other_shapes_are_refused(shape: object) -> None:
    with pytest.raises(RefusedError) as refused:
        layout("|u1", shape, LIMITS)
    assert refused.value.code is Code.MALFORMED


@pytest.mark.parametrize("shape", [[1] * 7, [1 << 40], [0, 1 << 62], [1 << 13, 1 << 13], [1 << 23, 1 << 23, 1 << 23]])
def test_what_is_over_a_cap_is_refused_before_there_is_an_array(shape: list[int]) -> None:
    with pytest.raises(RefusedError) as refused:
        layout("|u1", shape, LIMITS)
    assert refused.value.code is Code.TOO_LARGE


@pytest.mark.parametrize("data", [b"12345", b"1234567", b"", "123456", None, [1, 2, 3, 4, 5, 6]])
def test_bytes_must_be_as_many_as_the_shape_says(data: object) -> None:
    with pytest.raises(RefusedError) as refused:
        array(data, layout("|u1", [2, 3], LIMITS))
    assert refused.value.code is Code.MALFORMED


def test_a_boolean_is_0_or_1() -> None:
    with pytest.raises(RefusedError):
        array(b"\x02", layout("|b1", [1], LIMITS))


def _npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps([1]),
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x03\x00\x00\x00\x00\x00",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        _npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", pickle.dumps([1])),
        _npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }\n", b"1"),
        _npy(b"{'descr': '|u1', 'fortran_order': 0, 'shape': (1,), }\n", b"1"),
        _npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (__import__('os'),), }\n", b"1"),
        _npy(b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1,), }\n", b"1"),
        _npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 9999999999), }\n", b"1"),
    ],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedError):
        npy.decode(data, LIMITS)
