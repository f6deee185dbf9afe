from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elegy.data.batch import pack, pad_rows, rows, take_rows, unpack


class Transition(NamedTuple):
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    done: np.ndarray


X, Y, W = np.arange(6.0).reshape(3, 2), np.array([0, 1, 2]), np.ones(3)


@pytest.mark.parametrize(
    ("parts", "batch"),
    [
        ((X,), X),
        ((X, Y), (X, Y)),
        ((X, Y, W), (X, Y, W)),
        ((X, None, W), (X, None, W)),
        (({"a": X},), {"a": X}),
        (([X, X],), [X, X]),
        (((X, X),), ((X, X),)),
        (((X, X), Y), ((X, X), Y)),
        (((X,),), ((X,),)),
    ],
    ids=str,
)
def test_pack_makes_the_shortest_form_and_unpack_reads_it_back(parts, batch):
    packed = pack(*parts)

    def same(a, b):
        return jax.tree.structure(a) == jax.tree.structure(b) and all(
            p is q for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )

    assert same(packed, batch)
    assert same(unpack(packed), (*parts, None, None)[:3])


def test_a_named_tuple_is_inputs():
    transition = Transition(X, Y, W, W)
    assert pack(transition) is transition
    assert unpack(transition) == (transition, None, None)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), r"has 0: \(\)"),
        ((X, Y, W, Y), r"has 4: \(\w+\[3,2\], \w+\[3\], \w+\[3\], \w+\[3\]\).*\(\(x1, x2\), labels\)"),
    ],
)
def test_unpack_names_a_tuple_of_wrong_length(batch, message):
    with pytest.raises(ValueError, match=message):
        unpack(batch)


@pytest.mark.parametrize(
    ("batch", "count"),
    [(X, 3), ((X, Y), 3), ({"a": [X, jnp.ones((3, 1))]}, 3), ((X, None, W), 3), (np.zeros((0, 2)), 0)],
    ids=str,
)
def test_rows(batch, count):
    assert rows(batch) == count


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, np.zeros(4)), r"inputs has 3 rows but labels has 4 \(shape \(4,\)\)"),
        (({"a": X, "b": [X, np.zeros((5, 1))]}, Y), r"inputs/a has 3 rows but inputs/b/1 has 5"),
        (({"u": np.zeros((12, 1)), "x": X}, Y), r"equal\. If each example has 4 rows of inputs/u, .*\(3, 4, \.\.\.\)"),
        (({"u": X, "x": np.zeros((6, 1))}, Y), r"equal\. If each example has 2 rows of inputs/x, .*\(3, 2, \.\.\.\)"),
        ((X, np.zeros(6)), r"must be equal\.$"),
        (({"u": X, "x": np.zeros((5, 1))}, Y), r"must be equal\.$"),
        ((X, Y, np.ones(2)), "inputs has 3 rows but sample_weight has 2"),
        ({"a": X, "b": 3.0}, r"inputs/b is a scalar \(3.0\)"),
        ((X, np.array(1)), "labels is a scalar"),
        ({}, "holds no array"),
        ((None, None), "holds no array"),
    ],
)
def test_rows_names_what_does_not_agree(batch, message):
    with pytest.raises(ValueError, match=message):
        rows(batch)


@given(st.integers(1, 20), st.integers(0, 20))
def test_pad_rows_repeats_the_last_row_and_take_rows_undoes_it(count, more):
    batch = {"a": np.arange(count * 2, dtype=np.int16).reshape(count, 2), "b": np.arange(count, dtype=np.float32)}
    padded = pad_rows(batch, count + more)
    for name, leaf in batch.items():
        index = np.minimum(np.arange(count + more), count - 1)
        np.testing.assert_array_equal(padded[name], leaf[index], strict=True)
        np.testing.assert_array_equal(take_rows(padded, count)[name], leaf, strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float16, np.float64, ml_dtypes.bfloat16])
def test_padding_keeps_the_kind_and_the_dtype_of_arrays(dtype):
    host = pad_rows(np.ones((2, 3), dtype), 4)
    assert type(host) is np.ndarray
    assert (host.shape, host.dtype) == ((4, 3), dtype)
    if dtype is not np.float64:
        device = pad_rows(jnp.ones((2, 3), dtype), 4)
        assert isinstance(device, jax.Array)
        assert (device.shape, device.dtype) == ((4, 3), dtype)


def test_a_full_batch_is_not_copied():
    assert pad_rows(X, 3) is X
    assert take_rows(X, 3) is X
    assert take_rows(X, 2).base is not None


@pytest.mark.parametrize(
    ("batch", "to", "message"), [(X, 2, "3 rows to 2: it is longer"), (X[:0], 2, "empty batch to 2 rows")]
)
def test_pad_rows_refuses(batch, to, message):
    with pytest.raises(ValueError, match=message):
        pad_rows(batch, to)
