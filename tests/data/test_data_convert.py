import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas
import pytest

from elegy.data.convert import as_arrays, as_batch


class Tensor:
    """Stands for a PyTorch tensor: something that offers `__array__`."""

    def __init__(self, values, error=None):
        self.values, self.error = values, error

    def __array__(self, dtype=None, copy=None):
        if self.error:
            raise self.error
        return np.asarray(self.values, dtype)


@pytest.fixture
def fake_torch(monkeypatch):
    torch = types.ModuleType("torch")
    torch.Tensor = Tensor
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.uint8),
        np.zeros(2, np.float64),
        np.zeros(2, np.complex64),
        np.zeros(2, bool),
        np.zeros(2, ml_dtypes.bfloat16),
        np.zeros(2, ml_dtypes.float8_e4m3fn),
        jnp.zeros((2, 3)),
        jax.random.split(jax.random.key(0), 2),
    ],
    ids=lambda a: str(a.dtype),
)
def test_arrays_stay_what_they_are(array):
    assert as_arrays(array) is array
    assert as_arrays({"a": [array]})["a"][0] is array


def test_a_tree_of_arrays_is_returned_as_it_is():
    tree = {"a": [np.zeros(2), jnp.zeros(2)], "b": (np.zeros(2), None)}
    assert as_arrays(tree) is tree


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1, 2, 3], np.array([1, 2, 3])),
        ([[1.5, 2], [3, 4]], np.array([[1.5, 2], [3, 4]])),
        ([(1, 2), (3, 4)], np.array([[1, 2], [3, 4]])),
        ([True, False], np.array([True, False])),
        ([np.float32(1), np.float32(2)], np.array([1, 2], np.float32)),
        (Tensor([[1, 2]]), np.array([[1, 2]])),
        (np.array([1, 2], ">i4"), np.array([1, 2], np.int32)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_holds_numbers_becomes_an_array(given, expected):
    np.testing.assert_array_equal(as_arrays(given), expected, strict=True)


def test_lists_of_arrays_are_trees():
    out = as_arrays([np.zeros(2), {"a": [1, 2]}, (Tensor([3, 4]), np.ones(2))])
    assert type(out) is list
    assert type(out[2]) is tuple
    np.testing.assert_array_equal(out[1]["a"], [1, 2])
    np.testing.assert_array_equal(out[2][0], [3, 4])


def test_pandas_tables_become_arrays():
    table = pandas.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    np.testing.assert_array_equal(as_arrays(table), [[1, 3], [2, 4]])
    np.testing.assert_array_equal(as_arrays(table["a"]), [1, 2])


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": np.array(["x", "y"])}, TypeError, "inputs/a has the dtype <U1, which is not a dtype of numbers"),
        ({"a": np.array([1, None])}, TypeError, "inputs/a has the dtype object"),
        ({"a": np.array(["2024-01-01"], "datetime64[D]")}, TypeError, "inputs/a has the dtype datetime64"),
        (np.zeros(2, [("f", "f4")]), TypeError, "inputs has the dtype .*which is not a dtype of numbers"),
        (["x", "y"], TypeError, "inputs has the dtype <U1"),
        ([1, None], TypeError, "inputs has the dtype object"),
        ([[1, 2], [3]], ValueError, "inputs is a ragged list"),
        ({"a": [[1], 2]}, ValueError, "inputs/a is a ragged list"),
        ([1, np.zeros(2)], ValueError, "inputs is a ragged list"),
        ({"a": "text"}, TypeError, "inputs/a is a str, which is not an array"),
        ({"a": {"b": iter([])}}, TypeError, "inputs/a/b is a list_iterator, which is not an array"),
        ((np.zeros(2), object()), TypeError, "inputs/1 is an object, which is not an array"),
        ({"a": Tensor(None, RuntimeError("requires grad."))}, TypeError, "inputs/a is a Tensor.*requires grad.*detach"),
    ],
)
def test_what_is_no_array_is_named(tree, error, message):
    with pytest.raises(error, match=message):
        as_arrays(tree)


FITTING = [
    np.array([-(2**31), 2**31 - 1]),
    np.array([0, 2**32 - 1], np.uint64),
    np.zeros((0, 2), np.int64),
    np.array([2.0**40]),
    np.array(7),
]
BEYOND = [
    (np.array([[0, 2**31]]), 2**31),
    (np.array([-(2**31) - 1, 0]), -(2**31) - 1),
    (np.array([0, 2**32], np.uint64), 2**32),
    (np.array([0, 2**40], ">i8"), 2**40),
    (np.array(2**40), 2**40),
    ([0, 2**40], 2**40),
    (Tensor([0, 2**40]), 2**40),
]


@pytest.mark.parametrize("array", FITTING, ids=str)
def test_integers_that_fit_into_32_bits_stay_what_they_are(array):
    assert as_arrays(array) is array
    np.testing.assert_array_equal(jnp.asarray(array), array)


@pytest.mark.parametrize(
    ("given", "value"), BEYOND, ids=["int64", "negative", "uint64", "swapped", "scalar", "list", "tensor"]
)
def test_integers_that_jax_would_cut_off_are_named(given, value):
    with pytest.raises(ValueError, match=rf"batch 2: labels/ids contains {value}, .*'jax_enable_x64', True.*floats"):
        as_batch((np.zeros(2), {"ids": given}), "batch 2: ")
    with jax.enable_x64(True):
        labels = as_batch((np.zeros(2), {"ids": given}))[1]["ids"]
        np.testing.assert_array_equal(jnp.asarray(labels), np.asarray(given))


@pytest.fixture
def read(monkeypatch):
    """How many values of files were looked at for the least of them."""
    seen = []

    def least(self):
        seen.append(self.size)
        return np.ndarray.min(self)

    monkeypatch.setattr(np.memmap, "min", least)
    return seen


def test_a_file_is_read_through_once(tmp_path, read):
    values = np.random.default_rng(0).integers(0, 50_000, 300_000)
    np.save(tmp_path / "tokens.npy", values)
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    assert as_arrays(tokens) is tokens
    assert sum(read) == len(values)
    assert max(read) < len(values)
    assert as_batch((tokens, tokens))[0] is tokens
    assert sum(read) == len(values)


def test_a_file_that_may_change_is_read_again(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(10))
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r+")
    assert as_arrays(tokens) is tokens
    tokens[3] = 2**31
    with pytest.raises(ValueError, match=f"inputs contains {2**31}"):
        as_arrays(tokens)


def test_what_was_read_of_one_file_says_nothing_of_another(tmp_path):
    np.save(tmp_path / "small.npy", np.arange(10))
    np.save(tmp_path / "large.npy", np.arange(10) + 2**31)
    for _ in range(20):  # arrays that are gone leave their place in memory to others
        as_arrays(np.load(tmp_path / "small.npy", mmap_mode="r"))
        with pytest.raises(ValueError, match=f"inputs contains {2**31 + 9}"):
            as_arrays(np.load(tmp_path / "large.npy", mmap_mode="r"))


@pytest.mark.parametrize("at", [0, 131_071, 131_072, 299_999])
@pytest.mark.parametrize("view", [np.asarray, np.transpose, lambda a: a[::-1], lambda a: a.reshape(3, -1, 100)[:, ::2]])
def test_values_beyond_32_bits_are_found_wherever_they_lie(at, view):
    array = np.zeros((3000, 100), np.int64)
    array.reshape(-1)[at] = -(2**40)
    seen = view(array)
    if (seen < 0).any():
        with pytest.raises(ValueError, match=rf"inputs contains {-(2**40)}"):
            as_arrays(seen)
    else:
        assert as_arrays(seen) is seen


def test_batches_keep_their_form():
    x, y = np.zeros((2, 3)), np.zeros(2)
    assert as_batch((x, y)) == (x, y)
    assert as_batch([x, y])[1] is y
    assert type(as_batch([x, y])) is list
    np.testing.assert_array_equal(as_batch(([[1.0], [2.0]], [3, 4]))[1], [3, 4])
    np.testing.assert_array_equal(as_batch([1, 2, 3]), [1, 2, 3])
    assert as_batch({"a": x})["a"] is x


def test_batches_name_their_parts():
    with pytest.raises(TypeError, match="batch 3: labels/b is a str"):
        as_batch((np.zeros(2), {"b": "text"}), "batch 3: ")
    with pytest.raises(TypeError, match="inputs/3 is a str"):
        as_batch((1, 2, 3, "text"))


def test_lists_of_torch_tensors_are_batches(fake_torch):
    batch = as_batch([{"a": Tensor([[1.0]])}, Tensor([2])])
    assert type(batch) is tuple
    np.testing.assert_array_equal(batch[0]["a"], [[1.0]])
    np.testing.assert_array_equal(batch[1], [2])


def test_lists_that_a_loader_means_as_tuples_are_batches():
    x, y = np.zeros((2, 3)), np.zeros(2)
    batch = as_batch([x, y], listed=True)
    assert type(batch) is tuple
    assert batch[0] is x
    np.testing.assert_array_equal(as_batch([1, 2], listed=True), [1, 2])
