"""Short runs: `fast_dev_run`, `limit_train` and `limit_validation`."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import CSVLogger, ModelCheckpoint, TensorBoard

X = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32))[:, None]
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]


class Counts(eg.Callback):
    """Counts the batches of each epoch and of each validation."""

    batch_hooks_read = "logs"

    def __init__(self):
        self.train, self.test, self.ends = [], [], 0

    def on_epoch_begin(self, event):
        self.train.append(0)

    def on_train_batch_end(self, event):
        self.train[-1] += 1

    def on_test_begin(self, event):
        self.test.append(0)

    def on_test_batch_end(self, event):
        self.test[-1] += 1

    def on_train_end(self, event):
        self.ends += 1


def trainer(**options):
    return eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.05), **options)


def fit(made, data=(X, Y), **options):
    counts = Counts()
    options = {"batch_size": 8, "epochs": 2, "validation_data": (X, Y), "callbacks": [counts], "verbose": 0, **options}
    if not isinstance(data, tuple):
        del options["batch_size"]
        options["validation_data"] = list(BATCHES)
        made.fit(data, **options)
    else:
        made.fit(*data, **options)
    return counts


@pytest.mark.parametrize("data", [(X, Y), BATCHES], ids=["arrays", "batches"])
@pytest.mark.parametrize(
    ("limits", "train", "test"),
    [
        ({"limit_train": 2}, 2, None),
        ({"limit_train": 0.5, "limit_validation": 1}, 3, 1),
        ({"limit_train": 1.0, "limit_validation": 0.01}, None, 1),
        ({"limit_train": 100, "limit_validation": 100}, None, None),
        ({"limit_train": 4, "steps_per_epoch": 3}, 3, None),
        ({"limit_train": 0.5, "steps_per_epoch": 4}, 2, None),
    ],
)
@pytest.mark.some(6)
def test_limits_bound_the_batches_of_a_pass(data, limits, train, test):
    every = 7 if isinstance(data, tuple) else 6  # 50 rows, or 6 batches
    if "steps_per_epoch" in limits and not isinstance(data, tuple):
        limits = {**limits, "epochs": 1}  # a second epoch would take the batches that follow
    counts = fit(trainer(), data, **limits)
    assert counts.train == [train or every] * len(counts.train)
    assert counts.test == [test or every] * len(counts.train)


class Unsized:
    def __iter__(self):
        return iter(BATCHES)


@pytest.mark.parametrize("data", [lambda: iter(BATCHES), Unsized()], ids=["function", "iterable"])
@pytest.mark.parametrize("limits", [{"limit_train": 9, "limit_validation": 9}, {"fast_dev_run": 9}], ids=str)
def test_data_of_unknown_length_may_be_shorter_than_a_limit(data, limits):
    counts, whole, made = Counts(), trainer(), trainer()
    made.fit(data, epochs=2, validation_data=data, callbacks=[counts], verbose=0, **limits)
    assert counts.train == [6] * len(counts.train)
    assert counts.test == [6] * len(counts.train)
    whole.fit(BATCHES, epochs=len(counts.train), verbose=0)
    jax.tree.map(np.testing.assert_array_equal, made.state.params, whole.state.params)


def test_an_iterator_may_be_shorter_than_a_limit():
    made = trainer()
    made.fit(iter(BATCHES), limit_train=9, verbose=0)
    assert (made.step, made.epoch) == (6, 1)


def test_a_limited_epoch_of_arrays_is_the_beginning_of_its_order():
    limited, short = trainer(), trainer()
    fit(limited, limit_train=3, epochs=1)
    fit(short, steps_per_epoch=3, epochs=1)
    jax.tree.map(np.testing.assert_array_equal, limited.state.params, short.state.params)


@pytest.mark.parametrize(("few", "steps"), [(True, 1), (3, 3)])
def test_a_fast_run_takes_a_few_steps_and_writes_nothing(tmp_path, few, steps):
    counts = Counts()
    writers = [
        ModelCheckpoint(tmp_path / "run", monitor="val_far_loss"),
        CSVLogger(tmp_path / "log.csv"),
        TensorBoard(tmp_path / "logs"),
    ]
    sets = {"near": (X, Y), "far": eg.Evaluation((X, Y), every=eg.Every(epochs=5))}
    made = trainer(callbacks=writers, nonfinite="rollback")
    options = {"epochs": 9, "max_steps": 1, "resume": "auto", "validation_freq": 4}
    history = made.fit(
        X, Y, batch_size=8, validation_data=sets, callbacks=[counts], verbose=0, fast_dev_run=few, **options
    )
    assert (counts.train, counts.test, counts.ends) == ([steps], [steps, steps], 1)
    assert made.step == steps
    assert {"loss", "val_near_loss", "val_far_loss"} <= history.history.keys()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_train": 0}, "limit_train"),
        ({"limit_train": 1.5}, "a fraction of the batches is above 0 and at most 1.0"),
        ({"limit_train": "half"}, "limit_train must be a positive integer, or a fraction of the batches as a float"),
        ({"validation_freq": 0.5}, r"or an interval such as `eg.Every\(steps=500\)`, not 0.5"),
        ({"limit_validation": -0.1}, "limit_validation=-0.1"),
        ({"fast_dev_run": 0}, "fast_dev_run"),
        ({"limit_train": 3, "steps_per_epoch": 9}, "steps_per_epoch=9"),
        ({"limit_validation": 3, "validation_data": None}, "limit_validation=3, but there is no validation data"),
        ({"limit_train": float("nan")}, "limit_train=nan"),
    ],
)
def test_bad_limits_are_named(options, message):
    made = trainer()
    with pytest.raises((TypeError, ValueError), match=message):
        fit(made, **options)
    assert made.step == 0


def test_a_fraction_needs_a_length():
    with pytest.raises(ValueError, match=r"limit_train=0\.5 is a fraction of data without a length"):
        trainer().fit(iter(BATCHES), limit_train=0.5, verbose=0)
