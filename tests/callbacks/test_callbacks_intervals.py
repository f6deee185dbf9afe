"""Only batches at which a callback acts make events; everybody else still hears every batch."""

import pickle

import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import Callback, CallbackList, PeriodicCallback
from elegy.callbacks.interval import by_interval


class Recorder(PeriodicCallback):
    batch_hooks_read = "logs"

    def __init__(self, every):
        super().__init__(every)
        self.acted = []

    def on_train_batch_end(self, event):
        if self.due(event):
            self.acted.append((event.step, event.batch, event.examples, event.logs["loss"]))


class Watcher(Callback):
    batch_hooks_read = "logs"

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, event):
        self.seen.append((event.step, event.batch, event.examples, event.logs["loss"]))


@pytest.mark.parametrize("steps", [1, 3, 8, 50])
@pytest.mark.parametrize("before", [0, 2, 7, 49, 50])
def test_hooks_are_called_at_the_ends_of_the_interval(steps, before):
    heard = Recorder(eg.Every(steps=steps)).selected_batches(before, 0, [4] * 20)
    expected = [k for k in range(20) if (before + k + 1) // steps > (before + k) // steps]
    assert list(heard) == expected


def test_examples_are_counted_with_their_sizes_and_seconds_by_the_execution():
    assert list(Recorder(eg.Every(examples=10)).selected_batches(0, 3, [4, 4, 4, 1])) == [1]
    assert list(Recorder(eg.Every(seconds=1)).selected_batches(0, 0, [4, 4, 4])) == [2]


def test_one_callback_for_every_batch_makes_events_for_every_batch():
    sizes = [4] * 6
    some, all_ = Recorder(eg.Every(steps=4)), Watcher()
    assert list(CallbackList([some]).selected_batches("train", 0, 0, sizes)) == [3]
    assert list(CallbackList([some, all_]).selected_batches("train", 0, 0, sizes)) == list(range(6))
    assert list(CallbackList([]).selected_batches("train", 0, 0, sizes)) == []


@pytest.mark.parametrize("fuse", [1, 4, 8])
def test_what_a_periodic_callback_sees_is_what_a_watcher_of_every_step_sees(fuse):
    x = np.linspace(-1, 1, 45, dtype=np.float32)[:, None]

    def trained(*callbacks):
        trainer = eg.Trainer(
            (lambda key, x: {"w": np.zeros((1, 1), np.float32)}, lambda params, x: x @ params["w"]),
            loss=eg.losses.MeanSquaredError(),
            optimizer=optax.sgd(0.1),
        )
        trainer.fit(x, x, batch_size=4, epochs=2, verbose=0, callbacks=callbacks, steps_per_execution=fuse)

    alone, beside, watcher = Recorder(eg.Every(steps=5)), Recorder(eg.Every(steps=5)), Watcher()
    trained(alone)
    trained(beside, watcher)
    assert alone.acted == beside.acted == [seen for seen in watcher.seen if seen[0] % 5 == 0]
    assert len(watcher.seen) == 24


def test_callbacks_with_the_same_interval_are_asked_once_and_others_each():
    """Also if an interval changes, or a class or an instance selects batches in its own way."""
    asked = []

    class Asked(Recorder):
        @by_interval
        def selected_batches(self, step, examples, sizes):
            asked.append(self)
            return super().selected_batches(step, examples, sizes)

    class First(Asked):
        def selected_batches(self, step, examples, sizes):
            return [0]

    a, b, c, own, first = (kind(eg.Every(steps=5)) for kind in (Asked, Asked, Asked, Asked, First))
    own.selected_batches = lambda step, examples, sizes: [1]
    callbacks = CallbackList([a, b, c, own, first])
    assert list(callbacks.selected_batches("train", 0, 0, [8] * 10)) == [0, 1, 4, 9]
    assert asked == [a]
    c.every = eg.Every(steps=3)
    assert list(callbacks.selected_batches("train", 0, 0, [8] * 10)) == [0, 1, 2, 4, 5, 8, 9]
    assert asked == [a, a, c]
    assert hash(eg.Every(steps=5)) == hash(pickle.loads(pickle.dumps(eg.Every(steps=5))))
