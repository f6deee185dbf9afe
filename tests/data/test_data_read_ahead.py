"""Batches that a thread reads ahead are those that would be read without it, and nothing else is noticed of it."""

import gc
import itertools
import json
import sqlite3
import threading
import time
import traceback
import weakref

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moments import signals, wait_until
from test_data_resume import Positioned, PositionedLoader, Sequence, StatefulLoader

from elegy.data import IterableSource
from elegy.waiting import RunInterrupted, end_wait


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "elegy-read-ahead"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    for thread in threads():  # on a slow machine, a source that was stopped does not wait for it
        thread.join(600)
    assert threads() == []


def number(batch):
    return int(batch[0])


def taken(source, limit=None, most=None):
    """The numbers of the batches of a pass, or of its first ones."""
    batches = source.batches(limit)
    source.read_ahead_to(limit)
    return [number(batch) for batch in itertools.islice(batches, most)]


def numbers(count, read=None):
    for i in range(count):
        if read is not None:
            read.append(i)
        yield np.array([i])


KINDS = {
    "iterator with a state": lambda: Positioned(range(30)),
    "iterators with a state": PositionedLoader,
    "loader with a state": StatefulLoader,
    "sequence": Sequence,
    "function": lambda: lambda: numbers(5),
}
CALLS = st.lists(
    st.tuples(st.sampled_from([None, 2, 3]), st.integers(1, 7), st.integers(1, 3), st.booleans()),
    min_size=1,
    max_size=4,
)


def seen(kind, calls, depth):
    """Reads passes in several processes, each of which goes on from the state that the last one saved."""
    found, state = [], None
    for limit, stop, again, waits in calls:
        source = IterableSource(KINDS[kind]())
        with source.reading(depth):
            if state is not None:
                source.load_state(json.loads(json.dumps(state)))
            for last in [False] * (again - 1) + [True]:
                try:
                    batches = source.batches(limit)
                    first = next(batches)
                    source.read_ahead_to(limit)
                    rest = itertools.islice(batches, stop - 1 if last else None)
                    for count, batch in enumerate(itertools.chain([first], rest), 1):
                        found.append(number(batch))
                        if waits:
                            time.sleep(0.001)
                        if count == stop:
                            state = source.state(source.taken)
                except (ValueError, StopIteration) as error:
                    found.append(type(error).__name__)
            state = source.state(source.taken)
            found.append(state)
    return found


@settings(max_examples=40)
@given(st.sampled_from(list(KINDS)), CALLS, st.integers(1, 4))
def test_any_plan_of_passes_stops_and_resumes_gives_the_same_batches_and_states(kind, calls, depth):
    assert seen(kind, calls, depth) == seen(kind, calls, 0)


@pytest.mark.parametrize("depth", [0, 2])
def test_an_iterator_goes_on_with_the_batches_that_were_read_and_not_taken(depth):
    read = []
    data = numbers(8, read)
    first, second = IterableSource(data), IterableSource(data)
    with first.reading(2):
        assert taken(first, most=2) == [0, 1]
        while len(read) < 4:
            time.sleep(0.001)
    assert read == [0, 1, 2, 3]
    with second.reading(depth):
        assert taken(second) == [2, 3, 4, 5, 6, 7]


def test_batches_that_were_not_taken_are_not_those_that_are_written_over_them():
    def refilled():
        buffer = np.empty(1)
        for i in range(6):
            buffer[:] = i
            yield buffer

    data, calls = refilled(), []
    for most in (2, 2, None):
        source = IterableSource(data)
        with source.reading(2):
            calls.append(taken(source, most=most))
            time.sleep(0.01)
    assert calls == [[0, 1], [2, 3], [4, 5]]


def test_two_readers_of_one_iterator_share_its_batches():
    data = numbers(9)
    one, other = IterableSource(data), IterableSource(data, what="validation")
    with one.reading(2), other.reading(2):
        rest = one.batches()
        assert number(next(rest)) == 0
        one.read_ahead_to(None)
        assert number(next(rest)) == 1
        assert taken(other, limit=3) == [2, 3, 4]
        assert [number(batch) for batch in rest] == [5, 6, 7, 8]


def test_nothing_is_read_beyond_the_last_batch_of_a_pass():
    read = []
    source = IterableSource(numbers(9, read))
    with source.reading(3):
        for stop in (2, 4, 6):
            assert taken(source, limit=2) == [stop - 2, stop - 1]
            assert read == list(range(stop))


@pytest.mark.parametrize("depth", [1, 3])
def test_memory_holds_the_batch_in_use_and_as_many_as_are_read_ahead(depth):
    made = []

    def data():
        for i in range(12):
            array = np.full(1, i)
            made.append(weakref.ref(array))
            yield array
            del array

    source = IterableSource(data)
    with source.reading(depth):
        batches = source.batches()
        next(batches)
        source.read_ahead_to(None)
        for _ in batches:
            time.sleep(0.002)
            assert len(made) - source.taken <= depth
            assert sum(one() is not None for one in made) <= depth + 1


def test_an_error_is_raised_after_the_batches_before_it_with_its_own_traceback():
    def broken():
        yield from numbers(3)
        raise KeyError("no such file")

    source = IterableSource(broken)
    with source.reading(2):
        batches = source.batches()
        source.read_ahead_to(None)
        assert [number(next(batches)) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError, match="no such file") as caught:
            next(batches)
    assert "broken" in [frame.name for frame in traceback.extract_tb(caught.tb)]


def test_a_batch_that_is_not_an_array_is_named_by_its_own_number():
    source = IterableSource(lambda: iter([np.ones(2), np.ones(2), object()]))
    with source.reading(2), pytest.raises(TypeError, match="batch 2: inputs is"):
        taken(source)


def test_a_generator_runs_and_ends_in_one_thread():
    ends = []

    def database():
        connection = sqlite3.connect(":memory:")
        try:
            for (i,) in connection.execute("select 1 union select 2 union select 3"):
                yield np.array([i])
        finally:
            connection.close()  # raises an error in another thread
            ends.append(threading.current_thread().name)

    for most in (None, 2):  # to its end, and stopped before
        source = IterableSource(database)
        with source.reading(2):
            assert taken(source, most=most) == [1, 2, 3][:most]
        del source
    assert ends == ["elegy-read-ahead"] * 2


def test_data_that_is_bound_to_another_thread_says_what_to_do():
    connection = sqlite3.connect(":memory:")
    source = IterableSource(lambda: (np.array(row) for row in connection.execute("select 1")))
    with source.reading(2), pytest.raises(sqlite3.ProgrammingError, match="thread") as caught:
        taken(source)
    assert "prefetch=0" in caught.value.__notes__[0]
    connection.close()


def test_the_thread_has_the_settings_of_the_caller():
    found = []

    def data():
        found.append((jax.numpy.ones(1, "float64").dtype.name, np.geterr()["over"]))
        yield np.array([2**40])

    with jax.enable_x64(True), np.errstate(over="raise"):
        source = IterableSource(data)
        with source.reading(2):
            assert taken(source) == [2**40]
    assert found == [("float64", "raise")]


def test_an_iterator_is_freed_with_what_was_read_of_it():
    data = numbers(9)
    source = IterableSource(data)
    with source.reading(2):
        taken(source, most=2)
    reference = weakref.ref(data)
    del data, source
    gc.collect()
    assert reference() is None


def test_a_signal_ends_a_wait_and_loses_no_batch():
    begin, comes = threading.Event(), threading.Event()

    def late():
        yield np.array([0])
        wait_until(lambda: first.taken == 1)
        begin.set()
        comes.wait(600)
        yield from (np.array([1]), np.array([2]))

    data = late()
    first, second = IterableSource(data), IterableSource(data)
    with signals(end_wait, begin), first.reading(2), pytest.raises(RunInterrupted):
        taken(first)
    threading.Timer(0.05, comes.set).start()
    with second.reading(2):
        assert taken(second) == [1, 2]
