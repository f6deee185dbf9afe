import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from elegy.data.sources import as_source
from elegy.data.split import split


@given(st.integers(2, 200), st.floats(0.01, 0.99))
def test_the_last_rows_are_for_validation(size, fraction):
    kept = math.floor(size * (1 - fraction))
    assume(0 < kept < size)
    x, y = np.arange(size), np.arange(size) * 10
    train, validation = split(as_source(x, y), fraction)
    assert (train.size, validation.size) == (kept, size - kept)
    np.testing.assert_array_equal(train.batch[0], x[:kept])
    np.testing.assert_array_equal(validation.batch[0], x[kept:])
    np.testing.assert_array_equal(validation.batch[1], y[kept:])
    assert np.shares_memory(train.batch[0], x)
    assert np.shares_memory(validation.batch[0], x)


def test_trees_and_jax_arrays():
    train, validation = split(as_source({"a": jnp.arange(4), "b": [np.arange(4)]}), 0.25)
    np.testing.assert_array_equal(train.batch["a"], [0, 1, 2])
    np.testing.assert_array_equal(validation.batch["b"][0], [3])


def test_validation_carries_sample_weights_but_no_class_weights():
    labels, weights = np.array([0, 1, 0, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    train, validation = split(as_source(np.zeros(4), labels, weights, class_weight={1: 10.0}), 0.5)
    np.testing.assert_array_equal(train.batch[2], [1, 20])
    np.testing.assert_array_equal(validation.batch[2], [3, 4])
    _, validation = split(as_source(np.zeros(4), labels, class_weight={1: 10.0}), 0.5)
    assert len(validation.batch) == 2


@pytest.mark.parametrize(
    ("inputs", "fraction", "error", "message"),
    [
        (np.zeros(4), 0.0, ValueError, r"validation_split=0.0 is outside of \(0, 1\)"),
        (np.zeros(4), 1, ValueError, r"validation_split=1 is outside of \(0, 1\)"),
        (np.zeros(4), -0.5, ValueError, r"validation_split=-0.5 is outside"),
        (np.zeros(4), float("nan"), ValueError, "validation_split=nan is outside"),
        (np.zeros(4), "half", TypeError, "validation_split must be a number between 0 and 1, not 'half'"),
        (np.zeros(4), True, TypeError, "validation_split must be a number"),
        (np.zeros(1), 0.5, ValueError, "leaves 0 for training and 1 for validation"),
        ([(np.zeros(4), np.zeros(4))], 0.5, TypeError, "validation_split needs arrays.*Give validation_data instead"),
    ],
)
def test_a_split_that_cannot_be_is_refused(inputs, fraction, error, message):
    with pytest.raises(error, match=message):
        split(as_source(inputs), fraction)
