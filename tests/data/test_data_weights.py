import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from elegy.data.weights import balanced_class_weight, check_class_weight, weigh_classes

X = np.zeros((4, 2))
WEIGHTS = {0: 0.5, 2: 3.0}
EXPECTED = [0.5, 1.0, 3.0, 3.0]
LABELS = [0, 1, 2, 2]


@pytest.mark.parametrize(
    "labels",
    [
        np.array(LABELS),
        np.array(LABELS, np.uint8),
        np.array(LABELS, np.float32),
        jnp.array(LABELS),
        np.array(LABELS)[:, None],
        np.eye(3)[LABELS],
        np.eye(3, dtype=np.int32)[LABELS],
        {"target": np.array(LABELS)},
    ],
    ids=["int64", "uint8", "float32", "jax", "column", "one-hot", "one-hot-int", "dict"],
)
def test_each_example_gets_the_weight_of_its_class(labels):
    x, y, w = weigh_classes((X, labels), WEIGHTS)
    assert x is X
    assert y is labels
    np.testing.assert_array_equal(w, np.array(EXPECTED, np.float32), strict=True)


@given(st.lists(st.integers(0, 5), min_size=1), st.dictionaries(st.integers(0, 5), st.floats(0, 100, width=32)))
def test_it_agrees_with_scikit_learn(labels, class_weight):
    given_weights = {k: class_weight.get(k, 1.0) for k in range(6)}
    expected = compute_sample_weight(given_weights, labels)
    _, _, w = weigh_classes((None, np.array(labels)), class_weight)
    np.testing.assert_array_equal(w, expected.astype(np.float32))


def test_negative_classes_and_booleans_are_classes():
    np.testing.assert_array_equal(weigh_classes((X, np.array([-1, 1, -1, 1])), {-1: 2.0})[2], [2, 1, 2, 1])
    np.testing.assert_array_equal(weigh_classes((X, np.array([True, False])), {1: 2.0})[2], [2, 1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sample_weights_are_multiplied_in_their_own_dtype(dtype):
    given_weights = np.array([1, 2, 4, 0], dtype)
    weights = weigh_classes((X, np.array(LABELS), given_weights), WEIGHTS)[2]
    np.testing.assert_array_equal(weights, np.array([0.5, 2, 12, 0], dtype), strict=True)
    np.testing.assert_array_equal(given_weights, [1, 2, 4, 0])


def test_other_sample_weights():
    integers = weigh_classes((X, np.array(LABELS), np.array([1, 2, 4, 0])), WEIGHTS)[2]
    np.testing.assert_array_equal(integers, np.array([0.5, 2, 12, 0], np.float32), strict=True)
    of_steps = weigh_classes((X, np.array(LABELS), np.ones((4, 5), np.float32)), WEIGHTS)[2]
    np.testing.assert_array_equal(of_steps, np.tile(np.array(EXPECTED, np.float32)[:, None], 5))
    on_device = weigh_classes((X, np.array(LABELS), jnp.ones(4)), WEIGHTS)[2]
    assert isinstance(on_device, jax.Array)
    np.testing.assert_array_equal(on_device, EXPECTED)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, "batch 2: class_weight needs labels, but the batch has only inputs"),
        ((X, None, np.ones(4)), "class_weight needs labels"),
        ((X, {"a": np.zeros(4), "b": np.zeros(4)}), "one array of labels, but there are 2"),
        ((X, np.array([0.5, 1.0])), r"integers of shape.*shape \(2,\) and the dtype float64"),
        ((X, np.array([0.0, np.nan])), "integers of shape"),
        ((X, np.array([[0.9, 0.1]])), "not one-hot"),
        ((X, np.array([[1, 1]])), "not one-hot"),
        ((X, np.zeros((4, 2, 2))), r"shape \(4, 2, 2\)"),
        ((X, np.eye(2)[[0, 1, 0, 1]]), r"batch 2: class_weight has the key 2, .*\(4, 2\) have 2 classes.*0\.\.1"),
    ],
)
def test_labels_that_name_no_class_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        weigh_classes(batch, WEIGHTS, "batch 2: ")


@pytest.mark.parametrize(
    ("class_weight", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "class_weight is a list, but must be a dict"),
        ({"cat": 1.0}, TypeError, "class_weight has the key 'cat'"),
        ({"head": {0: 1.0}}, TypeError, "a dict under the key 'head'.*For several outputs, give sample weights"),
        ({True: 1.0}, TypeError, "class_weight has the key True"),
        ({1: "heavy"}, TypeError, r"class_weight\[1\] is 'heavy', but must be a number"),
        ({1: -1.0}, ValueError, r"class_weight\[1\] is -1.0"),
        ({1: float("nan")}, ValueError, r"class_weight\[1\] is nan"),
    ],
)
def test_class_weights_that_are_none_are_refused(class_weight, error, message):
    with pytest.raises(error, match=message):
        check_class_weight(class_weight)


def test_class_weights_of_numpy_are_taken():
    assert check_class_weight({np.int64(1): np.float32(0.5)}) == {1: 0.5}


def test_balanced_class_weights_are_those_of_scikit_learn_and_of_cui():
    labels = np.array([0, 0, 0, 5, 5, 2])
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 5]), y=labels)
    found = balanced_class_weight(labels)
    assert list(found) == [0, 2, 5]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-12)
    effective = np.array([(1 - 0.9) / (1 - 0.9**count) for count in (3, 1, 2)])
    np.testing.assert_allclose(
        list(balanced_class_weight(labels, beta=0.9).values()), 3 * effective / effective.sum(), rtol=1e-12
    )
    assert set(balanced_class_weight(labels, beta=0).values()) == {1.0}


@pytest.mark.parametrize(
    ("labels", "beta", "error", "says"),
    [
        ([], None, ValueError, "there are no labels"),
        ([0.5], None, TypeError, "labels are float64"),
        ([0, 1], 1.0, ValueError, r"beta=1.0 must be at least 0 and below 1"),
    ],
)
def test_balanced_class_weights_refuse_what_has_none(labels, beta, error, says):
    with pytest.raises(error, match=says):
        balanced_class_weight(labels, beta=beta)
