"""The thread that writes records: nothing is lost, in any way in which a program may end."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from moments import wait_until, waits_in

from elegy.loggers.log_writer import Channel, LogWriter


def test_a_full_queue_makes_the_caller_wait_and_loses_nothing():
    writer, written, goes_on = LogWriter(capacity=2), [], threading.Event()
    channel = Channel(writer)
    channel.put(lambda items: goes_on.wait(), None)  # the thread does nothing else until then
    puts = threading.Thread(target=lambda: [channel.put(written.extend, k) for k in range(100)])
    puts.start()
    wait_until(lambda: waits_in(puts, LogWriter._wait_for))  # in `put`, it may also wait for the lock
    assert (channel.pending, written) == (2, [])
    goes_on.set()
    puts.join()
    channel.drain()
    assert written == list(range(100))


def test_an_error_of_the_thread_is_raised_in_that_of_the_caller_once():
    writer, written = LogWriter(), []
    channel, other = Channel(writer), Channel(writer)

    def full(items):
        raise OSError("no space left")

    channel.put(full, "full")
    channel.put(written.extend, "lost")
    other.put(written.extend, "other")
    with pytest.raises(OSError, match="no space left"):
        channel.drain()
    channel.put(written.extend, "later")
    channel.drain()
    other.drain()
    assert written == ["other", "later"]


def test_the_exit_of_the_interpreter_writes_what_is_in_the_queue(tmp_path):
    program = f"""
import pathlib
from elegy.loggers.log_writer import Channel
channel = Channel()
for k in range(5):
    channel.put(lambda items: [pathlib.Path({str(tmp_path)!r}, str(k)).touch() for k in items], k)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == list("01234")


def test_items_that_wait_for_the_same_function_are_written_together_and_in_order():
    writer, goes_on, calls = LogWriter(), threading.Event(), []
    channels = {name: Channel(writer) for name in "ab"}
    channels["a"].put(lambda items: goes_on.wait(), None)
    for k in range(10):
        for name, channel in channels.items():
            channel.put(calls.append, (name, k))
    goes_on.set()
    for channel in channels.values():
        channel.drain()
    assert all(len({name for name, _ in call}) == 1 for call in calls)
    assert max(map(len, calls)) == 4
    for letter in "ab":
        assert [k for call in calls for name, k in call if name == letter] == list(range(10))


def test_one_wait_for_several_channels_ends_when_the_last_is_written():
    writer, goes_on, written = LogWriter(), threading.Event(), []
    channels = [Channel(writer) for _ in range(3)]
    channels[0].put(lambda items: goes_on.wait(), None)
    for k, channel in enumerate(channels):
        channel.put(written.extend, k)
    wakes = []
    waits = threading.Thread(target=lambda: (writer.wait(channels), wakes.append(list(written))))
    waits.start()
    wait_until(lambda: waits_in(waits, LogWriter._wait_for))
    goes_on.set()
    waits.join()
    assert wakes == [[0, 1, 2]]
