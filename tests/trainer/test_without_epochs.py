"""Runs whose end is a number of steps or a time, not a number of epochs."""

from __future__ import annotations

import itertools
import warnings

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import EarlyStopping, ModelCheckpoint

X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32))[:, None]
BATCHES = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 48, 4)]


def trainer(rate=0.02):
    return eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(rate))


def stream():
    return itertools.cycle(BATCHES)


def by_hand(steps, rate=0.02):
    """The losses on all data after each step of a bare loop."""
    made, losses = trainer(), []
    made.init_on_batch(*BATCHES[0])
    params = jax.tree.map(np.asarray, made.state.params)
    for x, y in itertools.islice(stream(), steps):
        error = x @ params["kernel"] + params["bias"] - y
        params = {
            "kernel": params["kernel"] - rate * 2 * x.T @ error / len(x),
            "bias": params["bias"] - rate * 2 * error.mean(0),
        }
        losses.append(float(np.mean((X @ params["kernel"] + params["bias"] - Y) ** 2)))
    return losses


@pytest.mark.parametrize("fuse", ["auto", 8])
def test_a_stream_is_evaluated_by_steps(capsys, fuse):
    made = trainer()
    options = {"validation_data": (X, Y), "validation_freq": eg.Every(steps=10), "steps_per_execution": fuse}
    history = made.fit(stream, max_steps=35, verbose=2, **options)
    losses = by_hand(35)
    assert made.step == 35
    assert [one["step"] for one in history.evaluations["val"]] == [10, 20, 30]
    values = [one["val_loss"] for one in history.evaluations["val"]]
    assert values == pytest.approx([losses[9], losses[19], losses[29]], rel=1e-4)
    assert history.history["val_loss"] == values[-1:]
    assert len(history.history["loss"]) == 1
    lines = [line.split("  ")[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["epoch 1", f"step {step}/35"] for step in (10, 20, 30, 35)]


def test_callbacks_act_on_the_evaluations_of_a_stream(tmp_path):
    stop, keep = EarlyStopping("val_loss", min_delta=1e9, patience=2), ModelCheckpoint(tmp_path, monitor="val_loss")
    made = trainer()
    options = {"validation_data": (X, Y), "validation_freq": eg.Every(steps=10), "callbacks": [stop, keep]}
    made.fit(stream, max_steps=1000, verbose=0, **options)
    assert (made.step, stop.best_step, stop.wait) == (30, 10, 2)
    assert keep.best_value == pytest.approx(by_hand(30)[-1], rel=1e-4)  # the loss falls


def test_a_stream_is_resumed_at_an_evaluation(tmp_path):
    def fit(steps):
        made = trainer()
        options = {"validation_data": (X, Y), "validation_freq": eg.Every(steps=10), "verbose": 0}
        made.fit(stream, max_steps=steps, callbacks=[ModelCheckpoint(tmp_path)], resume="auto", **options)
        return made

    whole = trainer()
    whole.fit(stream, max_steps=40, validation_data=(X, Y), validation_freq=eg.Every(steps=10), verbose=0)
    fit(20)
    resumed = fit(40)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, whole.state.params)
    assert resumed.history.history == whole.history.history
    assert resumed.history.evaluations == whole.history.evaluations


@pytest.mark.parametrize(
    ("data", "steps", "epochs"),
    [((X, Y), 30, 2), ((BATCHES,), 30, 2), ((lambda: iter(BATCHES),), 30, 2), ((BATCHES,), 5, 0)],
)
def test_max_steps_alone_passes_over_the_data_as_often_as_it_takes(data, steps, epochs):
    made = trainer()
    size = {"batch_size": 4} if len(data) == 2 else {}
    history = made.fit(*data, max_steps=steps, verbose=0, **size)
    assert (made.step, made.epoch) == (steps, epochs)
    assert history.epoch == list(range(-(-steps // 12)))


def test_epochs_still_end_a_run_and_one_is_the_default():
    made = trainer()
    made.fit(X, Y, batch_size=4, epochs=1, max_steps=30, verbose=0)
    assert made.step == 12
    made.fit(X, Y, batch_size=4, verbose=0)
    assert made.step == 24


def test_an_iterator_has_one_pass():
    made = trainer()
    with warnings.catch_warnings(action="error"):
        made.fit(iter(BATCHES), max_steps=30, verbose=0)
    assert (made.step, made.epoch) == (12, 1)


def test_a_time_alone_ends_a_run(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("elegy.trainer.clock.RunClock.seconds", property(lambda self: next(ticks) / 10))
    made = trainer()
    made.fit(X, Y, batch_size=4, max_time=20.0, verbose=0)
    assert made.epoch >= 1


@pytest.mark.parametrize(("batches", "epochs"), [(7, 3), (6, 2), (1, 1)])
def test_the_end_of_an_iterator_ends_a_run_without_epochs(batches, epochs):
    one = trainer()
    history = one.fit(iter(BATCHES[:batches]), steps_per_epoch=3, max_steps=50, validation_data=(X, Y), verbose=0)
    assert (one.step, one.epoch, history.epoch) == (batches, epochs, list(range(epochs)))
    ends = [*range(2, batches, 3), batches - 1][:epochs]
    expected = by_hand(batches)
    np.testing.assert_allclose(history.history["val_loss"], [expected[i] for i in ends], rtol=1e-4)


def test_a_number_of_epochs_still_needs_its_batches():
    with pytest.raises(ValueError, match="steps_per_epoch=3 is beyond the data"):
        trainer().fit(iter(BATCHES[:4]), epochs=2, steps_per_epoch=3, max_steps=50, verbose=0)
    with pytest.raises(ValueError, match="is empty"):
        trainer().fit(iter([]), steps_per_epoch=3, max_steps=50, verbose=0)


def test_max_steps_leaves_the_next_batch_to_the_next_run():
    data = iter(BATCHES[:8])
    trainer().fit(data, steps_per_epoch=3, max_steps=6, verbose=0)
    assert len(list(data)) == 2
