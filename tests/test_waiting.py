"""Waits that a signal may end."""

import signal
import sys
import threading
from queue import SimpleQueue

import numpy as np
import pytest
from moments import wait_until

from elegy.checkpoint import AsyncSaver, store
from elegy.loggers.log_writer import Channel, LogWriter
from elegy.waiting import RunInterrupted, Wait, current_wait, end_wait, join, no_wait, receive


@pytest.fixture(autouse=True)
def handler():
    before = signal.signal(signal.SIGTERM, lambda *_: end_wait())
    yield
    signal.signal(signal.SIGTERM, before)
    assert not current_wait()


def stop():
    signal.raise_signal(signal.SIGTERM)


def test_a_signal_ends_a_wait_and_nothing_else():
    stop()
    with pytest.raises(RunInterrupted), Wait():
        stop()
    stop()


def test_every_wait_has_a_number_of_its_own():
    numbers = [current_wait()]
    for _ in range(2):
        with Wait():
            numbers.append(current_wait())
            with Wait():
                numbers.append(current_wait())
            assert current_wait() == numbers[-2]
    assert len(set(numbers)) == 5
    assert numbers[0] == 0


@pytest.mark.parametrize("error", [StopIteration, ValueError, KeyboardInterrupt])
def test_code_that_swallows_the_exception_ends_the_wait_all_the_same(error):
    def swallow():
        try:
            stop()
        except BaseException:
            raise error from None

    with pytest.raises(RunInterrupted), Wait():
        swallow()
    with pytest.raises(error), Wait():  # the next wait knows nothing of it
        raise error


def test_what_returns_although_it_was_told_to_end_counts():
    found = []
    with Wait():
        try:
            stop()
        except RunInterrupted:
            found.append(1)
    assert found == [1]


def test_within_a_wait_there_may_be_code_that_must_not_be_left():
    done = []
    with Wait():
        with no_wait():
            stop()
            done.append(1)
        with pytest.raises(RunInterrupted), Wait():
            stop()
        with no_wait(), pytest.raises(RunInterrupted), Wait():
            stop()
    assert done == [1]


def test_the_waits_of_another_thread_are_not_the_main_threads():
    begun, end = threading.Event(), threading.Event()

    def work():
        with Wait():
            begun.set()
            end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    stop()
    end.set()
    thread.join()


@pytest.mark.parametrize("function", [receive, join])
def test_a_signal_that_does_not_wake_the_main_thread_ends_its_wait(function):
    """The system gave it to another thread, as it also may when it comes just before the main thread blocks."""
    main, ended, in_time = threading.main_thread().ident, threading.Event(), []

    def send():
        wait_until(lambda: function.__code__ in stack(main))
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        in_time.append(ended.wait(60))  # a wait that goes on ends here, and the handler is called then
        queue.put(None)

    queue, thread = SimpleQueue(), threading.Thread(target=send)
    thread.start()
    with pytest.raises(RunInterrupted), Wait():
        function(queue if function is receive else thread)
    ended.set()
    thread.join()
    assert in_time == [True]


@pytest.mark.parametrize("kind", ["a save", "a logger"])
def test_such_a_ctrl_c_leaves_a_thread_that_hangs(kind, tmp_path, monkeypatch):
    main, ended, hangs, in_time = threading.main_thread().ident, threading.Event(), threading.Event(), []
    if kind == "a save":
        monkeypatch.setattr(store, "write", lambda *_: hangs.wait(60))
        saver = AsyncSaver()
        saver.save(tmp_path / "saved", {"w": np.ones(2)}, {})
        wait, code = saver.wait, AsyncSaver.wait.__code__
    else:
        channel = Channel(LogWriter())
        channel.put(lambda items: hangs.wait(60), None)
        wait, code = channel.drain, Channel.drain.__code__

    def send():
        wait_until(lambda: code in stack(main))
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        in_time.append(ended.wait(30))
        hangs.set()

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        wait()
    ended.set()
    thread.join()
    wait()
    assert in_time == [True]


def stack(thread):
    frame, found = sys._current_frames()[thread], []
    while frame is not None:
        found.append(frame.f_code)
        frame = frame.f_back
    return found
