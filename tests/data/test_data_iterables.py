import itertools

import jax
import numpy as np
import pytest

from elegy.data.iterables import IterableSource
from elegy.names import type_name

X, Y = np.arange(4.0), np.arange(4)


def numbers(source, limit=None):
    return [int(batch[0]) for batch in source.batches(limit)]


def counting(stop=None, pulled=None):
    for i in itertools.count() if stop is None else range(stop):
        if pulled is not None:
            pulled.append(i)
        yield np.array([i])


class Restarting:
    """An iterator that begins again in `__iter__`, as many hand-written ones do."""

    def __init__(self, stop):
        self.stop = stop

    def __iter__(self):
        self.i = -1
        return self

    def __next__(self):
        self.i += 1
        if self.i == self.stop:
            raise StopIteration
        return np.array([self.i])


class Sequence:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return np.array([i])


class Unknown:
    def __len__(self):
        raise TypeError("the dataset length is unknown.")

    def __iter__(self):
        return counting(3)


class Same:
    """Promises to be iterable again, and is not."""

    def __init__(self):
        self.iterator = counting(2)

    def __iter__(self):
        return self.iterator


@pytest.mark.parametrize(
    "iterable",
    [[np.array([i]) for i in range(3)], lambda: counting(3), Sequence(), Unknown(), Restarting(3)],
    ids=["list", "function", "sequence", "unknown length", "restarting"],
)
def test_what_can_be_iterated_again_begins_again(iterable):
    source = IterableSource(iterable)
    for _ in range(3):
        assert numbers(source) == [0, 1, 2]


@pytest.mark.parametrize("make", [lambda: lambda: counting(7), lambda: [np.array([i]) for i in range(7)]])
def test_limited_passes_of_fit_go_on_and_begin_again_where_the_data_ends(make):
    source = IterableSource(make())
    assert [numbers(source, 3) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]]


@pytest.mark.parametrize("limit", [1, 3, 6])
def test_passes_that_fill_the_data_begin_again(limit):
    source = IterableSource(lambda: counting(6))
    assert [i for _ in range(12 // limit) for i in numbers(source, limit)] == [*range(6), *range(6)]


def test_endless_data_goes_on():
    class Endless:
        def __iter__(self):
            return counting()

    source = IterableSource(Endless())
    assert [numbers(source, 3) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("what", ["validation", "evaluate", "predict"])
def test_limited_passes_elsewhere_begin_at_the_beginning(what):
    source = IterableSource(lambda: counting(), what=what)
    assert [numbers(source, 2) for _ in range(2)] == [[0, 1], [0, 1]]


def test_an_iterator_goes_on_where_it_stopped():
    source = IterableSource(counting(5))
    assert numbers(source, 2) == [0, 1]
    assert numbers(source, 2) == [2, 3]
    assert numbers(source) == [4]


def test_a_pass_that_is_left_goes_on_too():
    source = IterableSource(counting(5))
    for batch in source.batches():
        if batch[0] == 1:
            break
    assert numbers(source) == [2, 3, 4]


@pytest.mark.parametrize("iterable_again", [True, False])
def test_no_batch_is_pulled_before_it_is_asked_for(iterable_again):
    pulled = []
    source = IterableSource((lambda: counting(None, pulled)) if iterable_again else counting(None, pulled))
    batches = source.batches(limit=3)
    assert pulled == []
    for i in range(3):
        next(batches)
        assert pulled == list(range(i + 1))
    assert list(batches) == []
    assert pulled == [0, 1, 2]


@pytest.mark.parametrize(
    ("what", "name"),
    [("fit", "steps_per_epoch"), ("validation", "validation_steps"), ("evaluate", "steps"), ("predict", "steps")],
)
def test_a_limit_beyond_the_data_is_named(what, name):
    with pytest.raises(ValueError, match=f"^{name}=4 is beyond the data: the Sequence had 3 batches"):
        IterableSource(Sequence(), what=what).batches(4)
    with pytest.raises(ValueError, match=f"^{name}=4 is beyond the data: the function had 3 batches"):
        numbers(IterableSource(lambda: counting(3), what=what), 4)
    source = IterableSource(counting(5), what=what)
    numbers(source, 3)
    with pytest.raises(ValueError, match=f"^{name}=3 is beyond the data: the generator had 2 batches"):
        numbers(source, 3)


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [(0, ValueError, "steps_per_epoch must be a positive integer, not 0"), (1.5, TypeError, "not 1.5")],
)
def test_a_limit_that_is_no_count_is_refused(limit, error, message):
    with pytest.raises(error, match=message):
        IterableSource(Sequence()).batches(limit)


@pytest.mark.parametrize("make", [lambda: counting(2), Same], ids=["generator", "same iterator"])
@pytest.mark.parametrize("limit", [None, 2])
def test_an_exhausted_iterator_is_named_in_the_next_epoch(make, limit):
    source = IterableSource(make())
    assert numbers(source, limit) == [0, 1]
    with pytest.raises(ValueError, match=r"given to fit is exhausted: it yielded 2 batches before.*a function"):
        numbers(source, limit)


def test_an_iterator_serves_one_validation():
    source = IterableSource(counting(2), what="validation")
    numbers(source)
    with pytest.raises(ValueError, match="the generator given to validation is exhausted"):
        numbers(source)


@pytest.mark.parametrize("iterable", [iter([]), lambda: iter([])], ids=["iterator", "function"])
def test_no_batch_at_all_is_an_empty_dataset(iterable):
    with pytest.raises(ValueError, match=r"the data of fit is empty: the .* yielded no batch"):
        numbers(IterableSource(iterable))


@pytest.mark.parametrize("result", [None, (X, Y), X, 3], ids=lambda v: type(v).__name__)
def test_a_function_must_return_an_iterator(result):
    with pytest.raises(TypeError, match=f"returned {type_name(result)}, but must return an iterator"):
        numbers(IterableSource(lambda: result))


def test_a_bad_batch_is_numbered():
    source = IterableSource([(X, Y), (X, {"a": "text"})])
    with pytest.raises(TypeError, match="batch 1: labels/a is a str"):
        list(source.batches())


def test_errors_of_the_iterable_pass():
    def broken():
        yield X
        raise OSError("disk")

    batches = IterableSource(broken).batches()
    next(batches)
    with pytest.raises(OSError, match="disk"):
        next(batches)


def test_batches_are_given_as_they_are():
    batch = ({"a": X}, None, Y)
    (out,) = IterableSource([batch]).batches()
    assert jax.tree.structure(out) == jax.tree.structure(batch)
    np.testing.assert_array_equal(out[0]["a"], X, strict=True)
    np.testing.assert_array_equal(out[2], Y, strict=True)
    np.testing.assert_array_equal(next(IterableSource([[1, 2]]).batches()), [1, 2])


def test_class_weights_batch_by_batch():
    source = IterableSource(lambda: iter([(X, Y), (X, Y[::-1], np.full(4, 2.0))]), class_weight={3: 5.0})
    first, second = source.batches()
    np.testing.assert_array_equal(first[2], [1, 1, 1, 5])
    np.testing.assert_array_equal(second[2], [10, 2, 2, 2])
    with pytest.raises(ValueError, match="batch 0: class_weight needs labels"):
        next(IterableSource([X], class_weight={3: 5.0}).batches())


def test_a_batch_that_is_a_list_is_a_tuple():
    (batch,) = IterableSource([[[X, X], Y]]).batches()
    assert type(batch) is tuple
    (first, second), labels = batch
    for ours, given in ((first, X), (second, X), (labels, Y)):
        np.testing.assert_array_equal(ours, given, strict=True)


def test_a_list_of_numbers_is_a_batch_of_inputs():
    (batch,) = IterableSource(iter([[[1, 2], [3, 4]]])).batches()
    np.testing.assert_array_equal(batch, [[1, 2], [3, 4]], strict=True)


def test_it_prints_what_it_is():
    assert repr(IterableSource(Sequence())) == "IterableSource(Sequence, steps=3, one_shot=False)"
