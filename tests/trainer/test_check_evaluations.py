"""Mistakes in evaluations are found before the first step, and the trainer stays as it was."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import EarlyStopping, ModelCheckpoint

X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)


def trainer(loss=None):
    return eg.Trainer(nn.Dense(2), loss or eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.sgd(0.1))


def val_a_loss(target, preds):
    return (preds * 0).sum(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"callbacks": [EarlyStopping("val_accuracies")]},
            "'val_accuracies' of EarlyStopping will not exist: its evaluation logs val_accuracy, ",
        ),
        (
            {"callbacks": [ModelCheckpoint("never", monitor="val_b_acc")], "validation_data": {"b": (X, Y)}},
            "'val_b_acc' of ModelCheckpoint will not exist: its evaluation logs val_b_accuracy",
        ),
        (
            {"callbacks": [ModelCheckpoint("never", monitor="acc")]},
            "'acc' of ModelCheckpoint will not exist: the training logs accuracy, cross_entropy, loss",
        ),
        (
            {"callbacks": [EarlyStopping("losses")], "validation_data": None},
            "'losses' of EarlyStopping will not exist: the training logs accuracy, ",
        ),
        (
            {"validation_data": {"a": (X, Y)}, "loss": [eg.losses.CrossEntropy(), val_a_loss]},
            "'val_a_' logs 'val_a_loss'",
        ),
        (
            {"validation_data": {"x": (X, Y), "x_val_a": (X, Y)}, "loss": [eg.losses.CrossEntropy(), val_a_loss]},
            "'val_x_val_a_' logs 'val_x_val_a_loss', which the evaluation 'val_x_' logs, too",
        ),
        ({"validation_freq": 0.5}, "validation_freq"),
        ({"validation_freq": "5"}, "validation_freq"),
    ],
)
def test_the_mistake_is_named(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    made = trainer(options.pop("loss", None))
    with pytest.raises((ValueError, TypeError), match=message):
        made.fit(X, Y, batch_size=4, **{"epochs": 2, "validation_data": (X, Y), "verbose": 0, **options})
    assert made.step == 0
    assert made.state.params is None
    assert not list(tmp_path.iterdir())


def test_the_mistake_is_named_before_a_step_of_the_sanity_check():
    ran = []

    def watched(target, preds):
        jax.debug.callback(lambda: ran.append(1))
        return (preds.argmax(-1) == target).astype(jnp.float32)

    def fit(monitor):
        made = eg.Trainer(nn.Dense(2), eg.losses.CrossEntropy(), watched, optax.sgd(0.1))
        options = {"sanity_check": 2, "max_steps": 1, "callbacks": [EarlyStopping(monitor)], "verbose": 0}
        made.fit(X, Y, validation_data=(X, Y), **options)

    with pytest.raises(ValueError, match="'val_accuracy' of EarlyStopping will not exist"):
        fit("val_accuracy")
    jax.effects_barrier()
    assert not ran
    fit("val_watched")
    jax.effects_barrier()
    assert ran


def test_a_name_that_a_callback_adds_may_be_monitored():
    class Score(eg.Callback):
        def on_test_end(self, event):
            event.log("score", 1.0)

    stop = EarlyStopping("val_score", patience=9)
    trainer().fit(X, Y, validation_data=(X, Y), callbacks=[Score(), stop], verbose=0)
    assert stop.best == 1.0


@pytest.mark.parametrize("monitor", ["val_acc", "acc"])
def test_members_of_a_population_monitor_what_is_logged(monitor):
    made = eg.Population(trainer, seeds=2)
    with pytest.raises(ValueError, match=f"'{monitor}' of EarlyStopping will not exist: .* logs .*accuracy"):
        made.fit(X, Y, validation_data=(X, Y), callbacks=[EarlyStopping(monitor)], verbose=0)
    assert made[0].step == 0


@pytest.mark.parametrize("monitor", ["loss", "grad_norm"])
def test_a_name_of_the_training_may_be_monitored(monitor):
    stop = EarlyStopping(monitor, patience=9)
    callbacks = [eg.callbacks.GradientMonitor(), stop] if monitor == "grad_norm" else [stop]
    trainer().fit(X, Y, callbacks=callbacks, verbose=0)
    assert stop.best is not None


def test_a_second_fit_counts_the_steps_of_the_first():
    made = trainer()
    made.fit(X, Y, batch_size=4, verbose=0)
    history = made.fit(X, Y, batch_size=4, validation_data=(X, Y), validation_freq=eg.Every(steps=20), verbose=0)
    assert [one["step"] for one in history.evaluations["val"]] == [20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_freq": eg.Every(steps=25)}, r"'val_' will not run.*Every\(steps=25\).*ends at 24 steps"),
        ({"validation_freq": eg.Every(examples=97)}, "will not run.*ends at 96 examples"),
        ({"validation_freq": 3}, r"will not run.*Every\(epochs=3\).*ends at 2 epochs"),
        ({"validation_freq": eg.Every(steps=9), "max_steps": 8}, "will not run.*ends at 8 steps"),
        ({"validation_freq": eg.Every(seconds=900), "max_time": 800}, "will not run.*ends at 800 seconds"),
        (
            {"validation_data": {"a": (X, Y), "b": eg.Evaluation((X, Y), every=eg.Every(steps=99))}},
            "'val_b_' will not run",
        ),
    ],
)
def test_an_evaluation_that_never_runs_is_warned_of(options, message):
    made = trainer()
    with pytest.warns(UserWarning, match=message):
        history = made.fit(X, Y, batch_size=4, **{"epochs": 2, "validation_data": (X, Y), "verbose": 0, **options})
    assert not any(name.startswith(("val_b", "val_loss")) for name in history.history)
    assert history.history["loss"]
