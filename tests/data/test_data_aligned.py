import jax
import numpy as np
import pytest

from elegy.data import ArraySource
from elegy.data.aligned import ALIGNMENT, SMALL, aligned_copy, aligned_empty
from elegy.data.convert import copied
from elegy.loading.chunks import BatchLayout, iterable_chunks
from elegy.strategies import Jit


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


def unaligned(shape):
    """Random numbers whose memory begins between two multiples of the alignment."""
    size = int(np.prod(shape))
    values = aligned_empty((size + 1,), np.dtype("float32"))[1:].reshape(shape)
    values[...] = np.random.default_rng(0).normal(size=shape)
    return values


@pytest.mark.parametrize("view", [lambda x: x, np.asfortranarray, lambda x: x[::-1], lambda x: x[:, ::2], np.transpose])
def test_the_device_computes_with_the_memory_of_copied_batches(view):
    batch = {"x": view(unaligned((64, 64)))}
    copy = copied(batch)["x"]
    np.testing.assert_array_equal(copy, batch["x"])
    assert not np.shares_memory(copy, batch["x"])
    cpu = jax.devices("cpu")[0]
    assert jax.device_put(copy, cpu).unsafe_buffer_pointer() == copy.ctypes.data
    assert (
        jax.device_put(unaligned((64, 64)), cpu).unsafe_buffer_pointer() % ALIGNMENT == 0
    )  # which is why it is copied


@pytest.mark.parametrize(
    "array",
    [
        np.ma.masked_less(np.arange(SMALL), 7),
        np.array(["a", None, 3] * SMALL, object),
        np.arange(3),
        np.array(5.0),
        np.zeros((0, 4)),
    ],
    ids=["masked", "objects", "small", "scalar", "empty"],
)
def test_other_arrays_are_copied_as_they_are(array):
    copy = aligned_copy(array)
    assert type(copy) is type(array)
    assert not np.shares_memory(copy, array)
    assert (copy.dtype, copy.shape, copy.tolist()) == (array.dtype, array.shape, array.tolist())


def test_stacks_of_batches_are_aligned():
    batches = [(unaligned((4, 5)), np.full(4, n, "int32")) for n in range(5)]
    chunks = list(iterable_chunks(batches, lambda batch: BatchLayout(steps=2), Jit()))
    stacks = [tuple(np.stack([batches[i][part] for i in pair]) for part in range(2)) for pair in ((0, 1), (2, 3))]
    for chunk, stack in zip(chunks, stacks, strict=False):
        jax.tree.map(np.testing.assert_array_equal, chunk.data, stack)
        assert [leaf.ctypes.data % ALIGNMENT for leaf in chunk.data] == [0, 0]
