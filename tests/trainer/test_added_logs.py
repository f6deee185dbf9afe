"""Values that callbacks add to the logs with `event.log`."""

from __future__ import annotations

import csv

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from some_cases import some

import elegy as eg
from elegy.callbacks import CSVLogger, EarlyStopping, LazyLogs, ModelCheckpoint

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
RUNS = [("jit", 1), ("jit", 4), ("eager", 1), ("data_parallel", 2)]


class Adds(eg.Callback):
    """Adds one value in each hook of a fit, by which it can be told where it arrived."""

    batch_hooks_read = "logs"

    def on_train_begin(self, event):
        event.log("run", 1)

    def on_epoch_begin(self, event):
        event.log("epoch", 10 + event.epoch)

    def on_train_batch_begin(self, event):
        event.log("before", event.step)

    def on_train_batch_end(self, event):
        event.log("after", jnp.float32(event.step))
        if event.step % 2:
            event.log("odd", lambda: event.step)

    def on_test_begin(self, event):
        event.log("begun", event.epoch)

    def on_test_batch_end(self, event):
        event.log("batch", event.batch)

    def on_test_end(self, event):
        event.log("ended", 2 * event.epoch)

    def on_epoch_end(self, event):
        event.log("end", 100 + event.epoch)


def trainer(strategy="jit", callbacks=(), seed=42):
    tx = optax.sgd(0.1)
    return eg.Trainer(
        nn.Dense(2), eg.losses.CrossEntropy(), None, tx, strategy=strategy, callbacks=callbacks, seed=seed
    )


def options(**more):
    return {"batch_size": 8, "epochs": 2, "validation_data": (X[:16], Y[:16]), "verbose": 0, "shuffle": False, **more}


@pytest.mark.parametrize(
    ("strategy", "fuse", "first"),
    some([*((*run, i % 2 == 0) for i, run in enumerate(RUNS)), *((*run, i % 2 == 1) for i, run in enumerate(RUNS))], 4),
)
def test_added_values_are_in_the_rows_of_their_steps_and_epochs(tmp_path, strategy, fuse, first):
    logger = CSVLogger(tmp_path / "log.csv", every=eg.Every(steps=1))
    callbacks = [Adds(), logger] if first else [logger, Adds()]
    fitted = trainer(strategy).fit(X, Y, callbacks=callbacks, steps_per_execution=fuse, **options())
    history = fitted.history
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = [rows[4], rows[9]]  # the row of the last step of an epoch has the values of the epoch, too
    assert [float(row["before"]) for row in rows] == list(range(10))
    assert [float(row["after"]) for row in rows] == list(range(1, 11))
    assert [row["odd"] for row in rows[:9]] == ["" if step % 2 else f"{step + 1:.1f}" for step in range(9)]
    assert {row["end"] for row in rows if row not in epochs} == {""}
    wanted = {"epoch": [10, 11], "before": [4, 9], "after": [5, 10], "odd": [5, 9], "end": [100, 101]}
    wanted |= {"val_begun": [0, 1], "val_batch": [1, 1], "val_ended": [0, 2]}
    for name, values in wanted.items():
        assert history[name] == values
        if name != "epoch":  # the logger has a column of that name
            assert [float(row[name]) for row in epochs] == values
    assert history["run"] == [1]


@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_and_checkpoints_monitor_added_values(tmp_path, first):
    class Score(eg.Callback):
        def on_epoch_end(self, event):
            event.log("score", [3.0, 1.0, 2.0, 4.0, 5.0][event.epoch])

    stop = EarlyStopping("score", mode="min", patience=2)
    keep = ModelCheckpoint(tmp_path / "run", monitor="score", mode="min")
    callbacks = [Score(), stop, keep] if first else [stop, keep, Score()]
    made = trainer()
    made.fit(X, Y, callbacks=callbacks, **options(epochs=5))
    assert made.epoch == 4
    assert (stop.best, stop.best_epoch) == (1.0, 1)
    other = trainer()
    other.init_on_batch(X[:8], Y[:8])
    other.restore(keep.best_path)
    assert other.epoch == 2


def test_evaluate_returns_added_values_and_the_parameters_do_not_change_by_them():
    plain, adding = trainer(), trainer(callbacks=[Adds()])
    for made in (plain, adding):
        made.fit(X, Y, **options())
    np.testing.assert_array_equal(plain.state.params["kernel"], adding.state.params["kernel"])
    values = adding.evaluate(X, Y, batch_size=8, verbose=0)
    added = {"begun": 2.0, "batch": 4.0, "ended": 4.0}
    assert values == {**plain.evaluate(X, Y, batch_size=8, verbose=0), **added}


def test_a_resumed_epoch_has_what_was_added_before_the_cut(tmp_path):
    class Once(eg.Callback):
        batch_hooks_read = "logs"

        def on_train_batch_end(self, event):
            if event.step in (2, 7):
                event.log("once", jnp.float32(event.step))

    whole = trainer(callbacks=[Once()]).fit(X, Y, **options()).history
    cut = trainer(callbacks=[Once(), ModelCheckpoint(tmp_path, every=eg.Every(steps=4))])
    cut.fit(X, Y, **options(max_steps=4))
    resumed = trainer(callbacks=[Once(), ModelCheckpoint(tmp_path, every=eg.Every(steps=4))])
    history = resumed.fit(X, Y, resume="auto", **options()).history
    assert whole["once"] == history["once"] == [2, 7]


def test_a_begin_hook_of_a_fused_step_counts_the_steps_before_it():
    class Steps(eg.Callback):
        batch_hooks_read = "logs"

        def on_train_batch_begin(self, event):
            seen.append(event.step)

    seen: list[int] = []
    trainer(callbacks=[Steps()]).fit(X, Y, steps_per_execution=4, **options(epochs=1))
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("hook", "name", "value", "error", "message"),
    [
        ("on_train_batch_end", "loss", 1.0, ValueError, "the step logs 'loss' itself"),
        ("on_test_batch_end", "cross_entropy", 1.0, ValueError, "the step logs 'cross_entropy' itself"),
        ("on_epoch_begin", "loss", 1.0, ValueError, "the step logs 'loss' itself"),
        ("on_epoch_end", "x", np.ones(2), TypeError, "takes one real number"),
        ("on_epoch_end", "x", "1.0", TypeError, "takes one real number"),
        ("on_epoch_end", "x", None, TypeError, "takes one real number"),
        ("on_epoch_end", "x", {}, TypeError, "takes one real number"),
        ("on_epoch_end", "x", 1 + 2j, TypeError, "takes one real number"),
        ("on_epoch_begin", 3, 1.0, TypeError, "takes the name"),
        ("on_predict_begin", "x", 1.0, RuntimeError, "a prediction has no logs"),
    ],
)
def test_what_cannot_be_added_is_named(hook, name, value, error, message):
    callback = eg.callbacks.LambdaCallback(**{hook: lambda event: event.log(name, value)})
    made = trainer(callbacks=[callback])
    with pytest.raises(error, match=message):
        made.predict(X) if "predict" in hook else made.fit(X, Y, **options())


def test_added_values_are_read_with_the_others_in_one_transfer():
    reads = []
    logs = LazyLogs(lambda: reads.append(1) or {"loss": jnp.float32(0.5)})
    logs.add("a", jnp.float32(2.0))
    assert reads == []
    assert logs.copy() == {"loss": 0.5, "a": 2.0}
    logs.add("b", 3)
    logs.add("a", 4)
    assert logs.copy() == {"loss": 0.5, "a": 4.0, "b": 3.0}
    assert reads == [1]
    with pytest.raises(ValueError, match="the step logs 'loss' itself"):
        logs.add("loss", 1.0)


def test_a_function_is_called_once():
    class Calls(eg.Callback):
        batch_hooks_read = "logs"

        def on_train_batch_end(self, event):
            event.log("at", lambda: calls.append(event.step) or len(calls))

    calls: list[int] = []
    reader = eg.callbacks.LambdaCallback(on_epoch_end=lambda event: dict(event.logs))
    history = trainer(callbacks=[Calls(), reader]).fit(X, Y, **options()).history
    assert history["at"] == [1, 2]
    assert calls == [5, 10]


class AtTheEnd(eg.Callback):
    """Logs a value when the logs are complete."""

    def on_train_end(self, event):
        event.log_text("note", "the end")
        event.log("score", 1.0)


def test_a_value_at_the_end_of_fit_is_refused(tmp_path):
    trainer = eg.Trainer(nn.Dense(2), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1))
    logger = eg.loggers.JSONLines(tmp_path / "log.jsonl")
    with pytest.raises(RuntimeError, match=r"'score'.*complete. Call it in on_epoch_end"):
        trainer.fit(X, Y, callbacks=[AtTheEnd(), logger], verbose=0)
    assert trainer.step == 2
    assert "the end" in (tmp_path / "log.jsonl").read_text()
