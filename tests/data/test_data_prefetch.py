import gc
import sys
import threading
import traceback

import pytest
from moments import signals

from elegy.data.prefetch import prefetch
from elegy.waiting import RunInterrupted, end_wait


def workers():
    return [t for t in threading.enumerate() if t.name == "elegy-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert workers() == []


@pytest.mark.parametrize("depth", [0, 1, 2, 10])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_the_items_are_the_same_in_the_same_order(depth, count):
    assert list(prefetch(iter(range(count)), depth)) == list(range(count))


@pytest.mark.parametrize("depth", [1, 3])
def test_the_thread_is_never_more_than_the_depth_ahead(depth):
    started = []

    def source():
        for i in range(20):
            started.append(i)
            yield i

    for i, item in enumerate(prefetch(source(), depth)):
        assert item == i
        # The item in hand, and `depth` in the queue or in the making.
        assert len(started) <= i + 1 + depth


def test_the_thread_works_ahead_and_depth_zero_does_not():
    made = threading.Event()

    def source():
        yield threading.current_thread().name
        made.set()
        yield threading.current_thread().name

    ahead = prefetch(source(), 1)
    assert next(ahead) == "elegy-prefetch"
    assert made.wait(600)
    assert list(ahead) == ["elegy-prefetch"]

    made.clear()
    inline = prefetch(source(), 0)
    assert next(inline) == threading.current_thread().name
    assert not made.is_set()


@pytest.mark.parametrize("depth", [0, 2])
def test_errors_are_raised_in_the_consumer_with_their_traceback(depth):
    def broken():
        yield 1
        raise KeyError("boom")

    items = prefetch(broken(), depth)
    assert next(items) == 1
    with pytest.raises(KeyError, match="boom") as caught:
        next(items)
    assert "broken" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert list(items) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_errors_that_are_no_exceptions_pass_too(error):
    def broken():
        raise error
        yield

    with pytest.raises(error):
        next(prefetch(broken(), 1))


def endless(closed):
    try:
        i = 0
        while True:
            yield i
            i += 1
    finally:
        closed.append(True)


def close(items):
    items.close()


def leave_by_exception(items):
    with pytest.raises(RuntimeError, match="consumer"):
        consume(items)


def consume(items):
    for item in items:
        if item == 3:
            raise RuntimeError("consumer")


@pytest.mark.parametrize("leave", [close, leave_by_exception])
def test_the_thread_ends_and_the_iterator_is_closed_with_the_consumer(leave):
    closed = []
    items = prefetch(endless(closed), 2)
    next(items)
    assert len(workers()) == 1
    leave(items)
    items.close()
    assert closed == [True]
    assert workers() == []


def test_the_thread_ends_when_the_generator_is_collected():
    closed = []
    items = prefetch(endless(closed), 2)
    next(items)
    del items
    gc.collect()
    assert closed == [True]
    assert workers() == []


def test_a_generator_that_was_never_read_starts_no_thread():
    items = prefetch(endless([]), 2)
    assert workers() == []
    del items


def test_items_are_not_kept_alive():
    class Item:
        pass

    items = prefetch((Item() for _ in range(3)), 1)
    for item in items:
        assert sys.getrefcount(item) <= 3  # the loop's name, the call's argument, and the generator's own until resumed


def test_a_negative_depth_is_refused():
    with pytest.raises(ValueError, match="must not be negative: -1"):
        prefetch([], -1)


def test_a_signal_ends_the_wait_for_an_item_and_does_not_wait_for_the_thread():
    came = threading.Event()

    def items():
        yield 1
        came.wait(600)
        yield 2

    ahead, begin = prefetch(items(), depth=2), threading.Event()
    assert next(ahead) == 1
    begin.set()
    with signals(end_wait, begin), pytest.raises(RunInterrupted):
        next(ahead)
    [worker] = workers()  # it still reads
    came.set()
    worker.join()
