"""The seconds of an event are those of finished work."""

from __future__ import annotations

import time

import pytest
from boring_modules import High, Spy, regression, trainer_of

from elegy import lazy_logs
from elegy.callbacks import Event, LazyLogs


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(lazy_logs.time, "monotonic", lambda: now[0])
    return now


def computed_at(when, clock):
    """Logs of a device that has computed them at some time; reading waits until then."""

    def fetch():
        clock[0] = max(clock[0], when)
        return {"loss": 0.5}

    return LazyLogs(fetch, lambda: clock[0] >= when)


def test_seconds_wait_for_the_results_and_elapsed_does_not(clock):
    hook = Event(None, "train", step=9, epoch=0, logs=computed_at(130.0, clock), elapsed=7.0, _made=clock[0])
    assert hook.elapsed == 7.0
    assert clock[0] == 100.0
    assert hook.seconds == 37.0  # 30 seconds after the hook was called
    clock[0] = 500.0
    assert hook.seconds == 37.0


@pytest.mark.parametrize(
    "look", [lambda logs: logs.ready, dict, lambda logs: logs.ready_at], ids=["ready", "read", "at"]
)
def test_the_first_who_looks_sees_when_they_were_computed(clock, look):
    logs = computed_at(120.0, clock)
    assert not logs.ready
    clock[0] = 121.0
    look(logs)
    clock[0] = 200.0
    assert logs.ready_at == 121.0


@pytest.mark.parametrize("logs", [{}, {"loss": 0.5}])
def test_numbers_that_are_there_need_no_time(clock, logs):
    hook = Event(None, "train", step=9, epoch=0, logs=logs, elapsed=7.0, _made=clock[0])
    clock[0] = 500.0
    assert hook.seconds == 7.0


def test_results_that_were_there_before_the_hook_need_no_time(clock):
    logs = computed_at(90.0, clock)
    assert logs.ready
    clock[0] = 110.0
    assert Event(None, "train", step=9, epoch=0, logs=logs, elapsed=7.0, _made=clock[0]).seconds == 7.0


@pytest.mark.parametrize("k", [1, 4])
def test_the_seconds_of_a_run_never_go_back_and_end_within_it(k):
    found = []

    def note(event):
        found.append(event.elapsed)
        found.append(event.seconds)
        assert not event.logs or event.logs.ready

    x, y = regression(64)
    spies = [
        Spy(hook, note, "logs") for hook in ("on_epoch_begin", "on_train_batch_end", "on_epoch_end", "on_train_end")
    ]
    trainer = trainer_of(High)
    began = time.monotonic()
    trainer.fit(x, y, epochs=3, callbacks=spies, steps_per_execution=k, validation_data=(x, y), verbose=0)
    assert found == sorted(found)
    assert 0 < found[-1] <= time.monotonic() - began
    assert len(found) == 2 * (3 * (1 + 2 + 1) + 1)
