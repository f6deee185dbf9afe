import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elegy.data.iterables import IterableSource
from elegy.data.sources import ArraySource, as_source, as_validation_source

X, Y, W = np.arange(12.0).reshape(6, 2), np.arange(6), np.ones(6)


class Loader:
    def __init__(self, steps=2):
        self.steps = steps

    def __len__(self):
        return self.steps

    def __iter__(self):
        return ((X, Y) for _ in range(self.steps))


class Sequence:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X + i, Y


class Tensor:
    def __array__(self, dtype=None, copy=None):
        return X

    def __iter__(self):
        return iter(X)


def generator():
    yield X, Y


@pytest.mark.parametrize(
    ("arguments", "batch"),
    [
        ((X,), X),
        ((X, Y), (X, Y)),
        ((X, Y, W), (X, Y, W)),
        ((X, None, W), (X, None, W)),
        ((X.tolist(), Y.tolist()), (X, Y)),
        (({"a": X, "b": [X, {"c": X}]}, {"d": Y}), ({"a": X, "b": [X, {"c": X}]}, {"d": Y})),
        (([X, X],), [X, X]),
        (((X, X),), ((X, X),)),
        (((X, X), Y), ((X, X), Y)),
        (([(X, X)], Y), ([(X, X)], Y)),
        ((Tensor(), Tensor()), (X, X)),
        ((jnp.asarray(X), Y), (jnp.asarray(X), Y)),
    ],
    ids=lambda v: str(jax.tree.map(lambda a: type(a).__name__, v)),
)
def test_arrays_and_trees_of_arrays(arguments, batch):
    source = as_source(*arguments)
    assert isinstance(source, ArraySource)
    assert source.size == 6
    assert source.nbytes == sum(a.nbytes for a in jax.tree.leaves(batch))
    assert jax.tree.structure(source.batch) == jax.tree.structure(batch)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), source.batch, batch)


def test_arrays_are_not_copied():
    device = jnp.asarray(X)
    source = as_source({"host": X, "device": device}, Y)
    assert source.batch[0]["host"] is X
    assert source.batch[0]["device"] is device
    assert not source.on_host
    assert as_source(X, Y).on_host


@pytest.mark.parametrize(
    ("inputs", "steps", "one_shot"),
    [
        (generator(), None, True),
        (iter([(X, Y)]), None, True),
        (zip([X], [Y], strict=True), None, True),
        (generator, None, False),
        (lambda n=1: iter([(X, Y)] * n), None, False),
        (Loader(2), 2, False),
        (Sequence(), 3, False),
        ([(X, Y), (X, Y), (X, Y, W)], 3, False),
        (collections.deque([X, X]), 2, False),
    ],
    ids=lambda v: type(v).__name__,
)
def test_whatever_can_be_iterated_gives_batches(inputs, steps, one_shot):
    for source in (as_source(inputs), as_validation_source(inputs)):
        assert isinstance(source, IterableSource)
        assert (source.steps, source.one_shot) == (steps, one_shot)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, Y[:5]), ValueError, "^inputs has 6 rows but labels has 5"),
        (({"a": X, "b": X[:2]}, Y), ValueError, "^inputs/a has 6 rows but inputs/b has 2"),
        ((X, Y, W[:1]), ValueError, "^inputs has 6 rows but sample_weight has 1"),
        ((X[:0], Y[:0]), ValueError, "the data is empty: its arrays have 0 rows"),
        (([], []), ValueError, "the data is empty"),
        (({},), ValueError, "holds no array"),
        (("train.csv",), TypeError, r"the inputs of fit are a str \('train.csv'\)"),
        ((b"x",), TypeError, "the inputs of fit are a bytes"),
        ((3,), TypeError, r"the inputs of fit are an int \(3\).*function without arguments"),
        ((1.5, Y), TypeError, "the inputs of fit are a float"),
        ((None,), TypeError, "the inputs of fit are None"),
        ((np.float32(3),), ValueError, "inputs is a scalar"),
        ((np.array(3.0),), ValueError, "inputs is a scalar"),
        (((1, 2, 3),), ValueError, "inputs/0 is a scalar.*a list of numbers is such an array"),
        ((X, "labels"), TypeError, "labels is a str, which is not an array"),
        ((X, generator()), TypeError, "labels is a generator, which is not an array"),
        (({"a": generator()}, Y), TypeError, "inputs/a is a generator"),
        ((generator(), Y), TypeError, "labels were given to fit with inputs that are a generator of batches"),
        ((Loader(), None, W), TypeError, "sample_weight were given to fit with inputs that are a Loader"),
        ((lambda size: iter([]),), TypeError, "inputs is a function, which is not an array"),
        ((object(),), TypeError, "inputs is an object, which is not an array"),
        ((np.array(["a"] * 6), Y), TypeError, "inputs has the dtype <U1"),
        ((X, np.array([object()] * 6)), TypeError, "labels has the dtype object"),
        (([[1, 2], [3]], [0, 1]), ValueError, "inputs is a ragged list"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        as_source(*arguments)


def test_the_call_is_named():
    with pytest.raises(TypeError, match="the inputs of predict are a str"):
        as_source("x", what="predict")


@pytest.mark.parametrize(
    ("given", "batch"),
    [
        (X, X),
        ((X, Y), (X, Y)),
        ((X, Y, W), (X, Y, W)),
        ((X,), X),
        (((X, X), Y), ((X, X), Y)),
        ((X.tolist(), Y.tolist()), (X, Y)),
        ({"a": X}, {"a": X}),
        ([X, Y], (X, Y)),
        ([X, Y, W], (X, Y, W)),
        ([[X, X], Y], ([X, X], Y)),
        (X.tolist(), X),
    ],
    ids=lambda v: type(v).__name__,
)
def test_validation_data_of_every_kind(given, batch):
    source = as_validation_source(given)
    assert source.size == 6
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), source.batch, batch)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((X, Y, W, W), ValueError, r"one to three parts.*has 4: \(float64\[6,2\], int64"),
        ((X, Y[:3]), ValueError, "^validation inputs has 6 rows but validation labels has 3"),
        ((X[:0], Y[:0]), ValueError, "validation data is empty"),
        ((X, "y"), TypeError, "validation labels is a str"),
        ("x", TypeError, "the inputs of validation are a str"),
    ],
)
def test_bad_validation_data_is_named(given, error, message):
    with pytest.raises(error, match=message):
        as_validation_source(given)


@settings(max_examples=30)
@given(st.integers(1, 30), st.data())
def test_take_and_slice_are_numpy_indexing(size, data):
    host, device = np.arange(size * 3, dtype=np.int16).reshape(size, 3), jnp.arange(size, dtype=jnp.float32)
    source = as_source({"host": host, "device": device}, host[:, 0])
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=40)), np.int32)
    inputs, labels = source.take(indices)
    np.testing.assert_array_equal(inputs["host"], host[indices], strict=True)
    np.testing.assert_array_equal(labels, host[indices, 0], strict=True)
    np.testing.assert_array_equal(inputs["device"], np.asarray(device)[indices])
    assert isinstance(inputs["device"], jax.Array)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    np.testing.assert_array_equal(source.slice(start, stop)[0]["host"], host[start:stop], strict=True)
    np.testing.assert_array_equal(source.take(np.arange(start, stop))[1], host[start:stop, 0], strict=True)


def test_take_of_a_matrix_of_indices():
    indices = np.array([[0, 5], [2, 2], [3, 4]], np.int32)
    x, y = as_source(X, Y).take(indices)
    np.testing.assert_array_equal(x, X[indices], strict=True)
    np.testing.assert_array_equal(y, Y[indices], strict=True)


def test_keys_are_gathered_too():
    keys = jax.random.split(jax.random.key(0), 4)
    taken = as_source(keys).take(np.array([3, 1]))
    np.testing.assert_array_equal(jax.random.key_data(taken), jax.random.key_data(keys)[np.array([3, 1])])


def test_slices_are_views_and_what_is_gathered_is_not():
    source = as_source(X)
    assert np.shares_memory(source.slice(2, 5), X)
    for indices in ([2, 3, 4], [3], [4, 3, 2], [2, 4], [0, 2, 1, 3]):
        taken = source.take(np.array(indices))
        assert not np.shares_memory(taken, X)
        np.testing.assert_array_equal(taken, X[indices])


def test_memory_mapped_files_are_arrays(tmp_path):
    np.save(tmp_path / "x.npy", X)
    source = as_source(np.load(tmp_path / "x.npy", mmap_mode="r"), Y)
    assert isinstance(source.batch[0], np.memmap)
    np.testing.assert_array_equal(source.take(np.array([5, 0]))[0], X[[5, 0]])


def test_class_weights_of_arrays():
    source = as_source(X, Y, np.full(6, 2.0), class_weight={5: 10.0})
    np.testing.assert_array_equal(source.batch[2], [2, 2, 2, 2, 2, 20])
    np.testing.assert_array_equal(source.unweighted[2], [2] * 6)
    assert len(as_source(X, Y, class_weight={}).batch) == 3
    with pytest.raises(ValueError, match="class_weight needs labels"):
        as_source(X, class_weight={0: 1.0})
    with pytest.raises(TypeError, match="class_weight is a list"):
        as_source(generator(), class_weight=[1.0])
