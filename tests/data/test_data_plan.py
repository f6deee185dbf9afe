import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elegy.data.permutation import epoch_permutation
from elegy.data.plan import EpochPlan
from elegy.integers import positive_int

SIZES = st.integers(1, 200)


@given(SIZES, st.integers(1, 250), st.booleans(), st.data())
def test_a_plan_agrees_with_a_plain_loop(size, batch_size, drop, data):
    plan = EpochPlan(size, batch_size, drop_remaining=drop, what="evaluate")
    batch = min(batch_size, size)
    expected = [(a, min(a + batch, size)) for a in range(0, size, batch)]
    if drop and expected[-1][1] - expected[-1][0] < batch:
        expected.pop()
    assert plan.batch_size == batch
    assert [plan.batch_rows(i) for i in range(plan.steps)] == expected
    assert plan.last_size == expected[-1][1] - expected[-1][0]

    limit = data.draw(st.integers(1, len(expected)))
    limited = EpochPlan(size, batch_size, drop_remaining=drop, limit=limit, what="evaluate")
    assert limited.steps == limit
    assert limited.last_size == expected[limit - 1][1] - expected[limit - 1][0]


@given(SIZES, st.integers(1, 200), st.integers(0, 5), st.booleans())
def test_an_epoch_sees_every_example_exactly_once(size, batch_size, epoch, shuffle):
    plan = EpochPlan(size, batch_size, what="predict")
    order = epoch_permutation(42, epoch, size) if shuffle else None
    indices, sizes = plan.index_matrix(order, 0, plan.steps)
    seen = np.concatenate([row[:n] for row, n in zip(indices, sizes, strict=True)])
    np.testing.assert_array_equal(seen, np.arange(size) if order is None else order)


@given(SIZES, st.integers(1, 200), st.data())
def test_index_matrix_of_some_batches(size, batch_size, data):
    plan = EpochPlan(size, batch_size, what="predict")
    first = data.draw(st.integers(0, plan.steps - 1))
    count = data.draw(st.integers(0, plan.steps - first))
    order = epoch_permutation(7, 0, size)
    indices, sizes = plan.index_matrix(order, first, count)
    assert (indices.shape, indices.dtype) == ((count, plan.batch_size), np.int32)
    assert (sizes.shape, sizes.dtype) == ((count,), np.int32)
    for k in range(count):
        start, stop = plan.batch_rows(first + k)
        real = order[start:stop]
        assert sizes[k] == stop - start
        np.testing.assert_array_equal(indices[k, : sizes[k]], real)
        assert (indices[k, sizes[k] :] == real[-1]).all()


@pytest.mark.parametrize(("size", "batch_size"), [(10, 10), (32, 32), (100, 32), (1, 1)])
def test_the_default_batch_size_is_kerass_capped_at_the_data(size, batch_size):
    assert EpochPlan(size).batch_size == batch_size
    assert EpochPlan(size, drop_remaining=True).steps == size // batch_size


@pytest.mark.parametrize("what", ["validation", "evaluate", "predict"])
def test_a_batch_larger_than_the_data_means_all_of_it_outside_of_fit(what):
    assert EpochPlan(10, 64, what=what).batch_rows(0) == (0, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 10, "batch_size": 11}, ValueError, "batch_size=11 is larger than the data, which has 10 examples"),
        ({"size": 10, "batch_size": 0}, ValueError, "batch_size must be a positive integer, not 0"),
        ({"size": 10, "batch_size": -3}, ValueError, "batch_size must be a positive integer, not -3"),
        ({"size": 10, "batch_size": 2.0}, TypeError, "batch_size must be a positive integer, not 2.0"),
        ({"size": 10, "batch_size": True}, TypeError, "batch_size must be a positive integer, not True"),
        ({"size": 10, "batch_size": "3"}, TypeError, "batch_size must be a positive integer, not '3'"),
        ({"size": 10, "batch_size": 0, "what": "validation"}, ValueError, "validation_batch_size must be"),
        ({"size": 0}, ValueError, "the data of fit is empty"),
        (
            {"size": 10, "batch_size": 4, "limit": 4},
            ValueError,
            "steps_per_epoch=4 is beyond the data: 10 .* 3 batches of 4",
        ),
        (
            {"size": 10, "batch_size": 4, "limit": 3, "drop_remaining": True},
            ValueError,
            r"2 batches of 4 \(the short last batch is dropped\)",
        ),
        ({"size": 10, "limit": 0}, ValueError, "steps_per_epoch must be a positive integer"),
        ({"size": 10, "limit": 2, "what": "evaluate"}, ValueError, "^steps=2 is beyond the data"),
        ({"size": 10, "limit": 2, "what": "validation"}, ValueError, "^validation_steps=2 is beyond the data"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        EpochPlan(**arguments)


def test_batches_and_orders_out_of_range_are_refused():
    plan = EpochPlan(10, 4)
    for i in (-1, 3):
        with pytest.raises(IndexError, match=f"no batch {i}: the epoch has 3"):
            plan.batch_rows(i)
    with pytest.raises(IndexError, match="no batch 3"):
        plan.index_matrix(None, 1, 3)
    with pytest.raises(ValueError, match=r"shape \(9,\), but the data has 10"):
        plan.index_matrix(np.arange(9), 0, 1)


def test_counts_of_numpy_are_integers():
    assert type(positive_int("n", np.int32(4))) is int
    assert EpochPlan(10, np.int64(4)) == EpochPlan(10, 4)
