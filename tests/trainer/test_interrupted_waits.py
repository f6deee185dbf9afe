"""Signals that come while `fit` waits for a batch: the run ends with the state of the last step."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from boring_modules import High, assert_same_bits, host, regression, trainer_of
from moments import signal_in

import elegy as eg
from elegy.callbacks import LambdaCallback, ModelCheckpoint, interrupt
from elegy.checkpoint import store
from elegy.checkpoint.background import AsyncSaver

X, Y = regression(40)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)]


OVER = threading.Event()
"""Set when a test is over: no thread hangs any longer, which another test might find."""


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(interrupt, "PATIENCE", 0.05)
    OVER.clear()
    yield
    OVER.set()
    for thread in threading.enumerate():
        if thread.name == "elegy-read-ahead":
            thread.join()


def hang(number=signal.SIGTERM, steps=None):
    """Waits for ever, as for a dead network; a signal comes soon, or soon after an event."""
    if steps is not None:
        assert steps.wait(600)
    # If another thread received the signal, Python would not end the wait of the main one.
    timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, number))
    timer.start()
    try:
        OVER.wait(600)
    finally:  # not after the run, whose handler the signal is for
        timer.cancel()
        timer.join()
    raise AssertionError("nobody ended the wait")


def blocked(after, number=signal.SIGTERM, steps=None):
    """Batches of which the next one after some never comes."""
    yield from BATCHES[:after]
    hang(number, steps)


def done(event, count):
    """A callback that sets an event after some steps."""
    return LambdaCallback(on_train_batch_end=lambda end: event.set() if end.step == count else None)


def fit(trainer, data, callbacks=(), **kwargs):
    trainer.fit(data, verbose=0, callbacks=callbacks, **{"epochs": 2, **kwargs})
    return trainer


def saving(tmp_path):
    return ModelCheckpoint(tmp_path, every=eg.Every(steps=1000))


@pytest.mark.parametrize(("number", "prefetch"), [(signal.SIGTERM, 2), (signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_a_batch_that_does_not_come(tmp_path, number, prefetch):
    ends = []
    watch = LambdaCallback(on_train_end=lambda event: ends.append((event.ended, event.step, event.epoch)))
    steps = threading.Event()
    callbacks = [watch, done(steps, 3), saving(tmp_path)]
    cut = fit(trainer_of(High), lambda: blocked(3, number, steps), callbacks, prefetch=prefetch)
    assert (cut.step, cut.epoch, cut.interrupted) == (3, 0, number)
    assert ends == [("interrupted", 3, 0)]
    resumed = fit(trainer_of(High), lambda: iter(BATCHES), [saving(tmp_path)], resume="auto")
    whole = fit(trainer_of(High), lambda: iter(BATCHES))
    assert resumed.history.history == whole.history.history
    assert_same_bits(host(resumed.state), host(whole.state))


class Anew:
    """Something to iterate over whose second pass does not begin."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        if self.passes == 2:
            hang()
        return iter(BATCHES)


def test_a_pass_that_does_not_begin(tmp_path):
    cut = fit(trainer_of(High), Anew(), [saving(tmp_path)], validation_data=BATCHES)
    assert (cut.step, cut.epoch, cut.history.epoch) == (5, 1, [0])
    assert {len(values) for values in cut.history.history.values()} == {1}
    resumed = fit(trainer_of(High), BATCHES, [saving(tmp_path)], validation_data=BATCHES, resume="auto")
    whole = fit(trainer_of(High), BATCHES, validation_data=BATCHES)
    assert {name: values[:1] for name, values in whole.history.history.items()} == cut.history.history
    assert resumed.history.history == whole.history.history
    assert_same_bits(host(resumed.state), host(whole.state))


@pytest.mark.parametrize("stop", [hang, lambda: signal.raise_signal(signal.SIGTERM)], ids=["waits", "runs"])
def test_a_validation_that_waits_or_runs_is_done_by_the_resumed_run(tmp_path, stop):
    def validation():
        for count, batch in enumerate(BATCHES):
            if count == 2:
                stop()
            yield batch

    ends = []
    watch = LambdaCallback(
        on_epoch_end=lambda event: ends.append(event.step), on_test_end=lambda event: ends.append(event.ended)
    )
    cut = trainer_of(High)
    fit(cut, BATCHES, [watch, saving(tmp_path)], validation_data=validation)
    assert (cut.step, cut.epoch, ends) == (5, 0, ["interrupted"])
    resumed = fit(trainer_of(High), BATCHES, [watch, saving(tmp_path)], validation_data=BATCHES, resume="auto")
    assert ends == ["interrupted", "finished", 5, "finished", 10]
    assert resumed.history.history == fit(trainer_of(High), BATCHES, validation_data=BATCHES).history.history


def test_data_that_hides_the_interruption_has_not_ended():
    def swallows():
        yield from BATCHES[:3]
        try:
            hang()
        except BaseException:
            return

    trainer = fit(trainer_of(High), swallows, prefetch=0)
    assert (trainer.step, trainer.epoch, trainer.interrupted) == (3, 0, signal.SIGTERM)


def test_a_batch_that_comes_soon_is_waited_for(monkeypatch):
    monkeypatch.setattr(interrupt, "PATIENCE", 60)

    def slow():
        yield from BATCHES[:3]
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.01)
        yield from BATCHES[3:]

    trainer = fit(trainer_of(High), slow, prefetch=0)
    assert (trainer.step, trainer.interrupted) == (4, signal.SIGTERM)


class Stateful:
    """Batches with a state of their own; a read that is interrupted leaves it somewhere."""

    def __init__(self, hangs_at=None, steps=None):
        self.place, self.hangs_at, self.steps = 0, hangs_at, steps

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        if self.place - 1 == self.hangs_at:
            hang(steps=self.steps)
        if self.place > len(BATCHES):
            raise StopIteration
        return BATCHES[self.place - 1]

    def get_state(self):
        return self.place

    def set_state(self, place):
        self.place = place


def test_the_position_of_interrupted_data_is_counted_with_a_warning(tmp_path):
    cut = fit(trainer_of(High), Stateful(3), [saving(tmp_path)], epochs=1, prefetch=0)
    assert cut.step == 3
    with pytest.warns(UserWarning, match="Stateful given to fit (read a batch|is not known)"):
        resumed = fit(trainer_of(High), Stateful(), [saving(tmp_path)], epochs=1, resume="auto")
    assert_same_bits(host(resumed.state), host(fit(trainer_of(High), BATCHES, epochs=1).state))


def test_the_position_of_data_that_is_read_ahead_is_that_of_the_last_step(tmp_path):
    steps = threading.Event()
    cut = fit(trainer_of(High), Stateful(3, steps), [done(steps, 3), saving(tmp_path)], epochs=1)
    assert cut.step == 3
    resumed = fit(trainer_of(High), Stateful(), [saving(tmp_path)], epochs=1, resume="auto")
    assert_same_bits(host(resumed.state), host(fit(trainer_of(High), BATCHES, epochs=1).state))


def test_a_trainer_that_makes_the_data_of_another_one_keeps_its_state(monkeypatch):
    inner, plain = trainer_of(High), trainer_of(High)
    for trainer in (inner, plain):
        trainer.train_on_batch(X[:8], Y[:8])
    put = inner._session.buffer.put

    def interrupted_put(*args):
        assert not inner._session.buffer.readable()  # the old state is consumed, and the new one not in its place
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        put(*args)

    def data():
        yield BATCHES[0]
        monkeypatch.setattr(inner._session.buffer, "put", interrupted_put)
        inner.train_on_batch(X[:8], Y[:8])
        OVER.wait(600)

    outer = fit(trainer_of(High), data, prefetch=0)
    plain.train_on_batch(X[:8], Y[:8])
    assert (outer.step, outer.interrupted, inner.step) == (1, signal.SIGTERM, 2)
    assert_same_bits(host(inner.state), host(plain.state))


def test_the_fit_of_another_trainer_within_the_data_has_its_own_signals():
    inner = trainer_of(High)

    def data():
        yield BATCHES[0]
        inner.fit(lambda: blocked(2), verbose=0, prefetch=0)
        yield BATCHES[1]

    outer = fit(trainer_of(High), data, epochs=1, prefetch=0)
    assert (inner.step, inner.interrupted, outer.step, outer.interrupted) == (2, signal.SIGTERM, 2, None)


def test_a_second_ctrl_c_leaves_a_save_that_hangs(tmp_path, monkeypatch):
    hangs, write, trainer = threading.Event(), store.write, trainer_of(High)
    monkeypatch.setattr(store, "write", lambda path, content: (hangs.wait(600), write(path, content)))

    def first(event):
        if event.step == 2:
            signal.raise_signal(signal.SIGINT)

    callbacks = [LambdaCallback(on_train_batch_end=first), ModelCheckpoint(tmp_path, every=eg.Every(steps=1))]
    with signal_in(AsyncSaver.wait, signal.SIGINT), pytest.raises(KeyboardInterrupt):
        fit(trainer, BATCHES, callbacks)
    assert (trainer.step, trainer.interrupted) == (2, signal.SIGINT)  # the second save waited for the first
    # A run that follows in the same process waits for the save, and goes on from it.
    threading.Timer(0.2, hangs.set).start()
    begins = []
    begin = LambdaCallback(on_train_begin=lambda event: begins.append(event.step))
    resumed = fit(trainer_of(High), BATCHES, [begin, ModelCheckpoint(tmp_path)], resume="auto")
    assert begins == [1]
    whole = fit(trainer_of(High), BATCHES)
    assert_same_bits(host(resumed.state), host(whole.state))
    assert resumed.history.history == whole.history.history
