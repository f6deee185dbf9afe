import numpy as np
import pytest

from elegy.data import ArraySource
from elegy.data.aligned import ALIGNMENT, aligned_empty


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 5), "float32"), ((), "int8"), ((0, 4), "float64"), ((1000,), "complex64")]
)
def test_memory_is_aligned_and_an_array_s_own(shape, dtype):
    arrays = [aligned_empty(shape, np.dtype(dtype)) for _ in range(20)]
    assert {(array.shape, array.dtype.name, array.ctypes.data % ALIGNMENT) for array in arrays} == {(shape, dtype, 0)}
    for i, array in enumerate(arrays):
        array[...] = i
    assert all((array == i).all() for i, array in enumerate(arrays))  # no two share memory


@pytest.mark.parametrize("view", [np.copy, np.asfortranarray, lambda x: x[::-1], lambda x: x[:, ::2]])
def test_large_gathers_are_aligned_and_equal_to_indexing(view):
    data = view(np.random.default_rng(0).normal(size=(500, 40)).astype("float32"))
    index = np.random.default_rng(1).permutation(500)[:200].reshape(2, 100)
    rows = ArraySource.of(data).take(index)
    np.testing.assert_array_equal(rows, data[index])
    assert rows.ctypes.data % ALIGNMENT == 0
