"""Evaluations with losses and metrics of their own."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from boring_modules import Managed
from some_cases import some

import elegy as eg
from elegy.callbacks import EarlyStopping

X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
Y = (X[:, 0] + 0.3 * X[:, 1] > 0).astype(np.int32)
NEAR, FAR = (X[:16], Y[:16]), (3 * X[10:30], Y[10:30])


def trainer(strategy="jit", **options):
    options = {"metrics": eg.metrics.Accuracy(), **options}
    return eg.Trainer(nn.Dense(2), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1), strategy=strategy, **options)


def top(target, preds):
    return preds.max(axis=-1)


def by_hand(made, data):
    """Cross entropy, its half, the mean of the largest output, recall and accuracy, with NumPy."""
    x, y = data
    preds = np.asarray(made.predict(x), np.float64)
    entropy = (np.log(np.exp(preds).sum(-1)) - preds[np.arange(len(y)), y]).mean()
    chosen = preds.argmax(-1)
    recall = (chosen[y == 1] == 1).mean()
    return entropy, preds.max(-1).mean(), recall, (chosen == y).mean()


@pytest.mark.parametrize(
    ("strategy", "batch_size"),
    some([("jit", 7), ("eager", 20), ("fsdp", 7), ("sharded", 8), ("data_parallel", 7)], 2),
)
def test_each_set_has_its_own_metrics(strategy, batch_size):
    sets = {
        "near": NEAR,
        "far": eg.Evaluation(
            FAR, metrics=[top, eg.metrics.Recall(class_id=1)], every=eg.Every(steps=3), batch_size=batch_size
        ),
        "half": eg.Evaluation(FAR, loss=[eg.losses.CrossEntropy(weight=0.5), top], batch_size=batch_size),
    }
    made = trainer(strategy)
    history = made.fit(X, Y, batch_size=16, epochs=1, validation_data=sets, verbose=0).history
    last = {name: values[-1] for name, values in history.items() if name.startswith("val_")}
    names = {"near": ["loss", "cross_entropy", "accuracy"], "far": ["loss", "cross_entropy", "top", "recall"]}
    names["half"] = ["loss", "cross_entropy", "top", "accuracy"]
    assert last.keys() == {f"val_{of}_{name}" for of, every in names.items() for name in every}
    entropy, largest, recall, accuracy = by_hand(made, FAR)
    for name, value in {"loss": entropy, "cross_entropy": entropy, "top": largest, "recall": recall}.items():
        assert last[f"val_far_{name}"] == pytest.approx(value, rel=1e-5)
    wanted = {"loss": 0.5 * entropy + largest, "cross_entropy": 0.5 * entropy, "top": largest, "accuracy": accuracy}
    for name, value in wanted.items():
        assert last[f"val_half_{name}"] == pytest.approx(value, rel=1e-5)
    entropy, _, _, accuracy = by_hand(made, NEAR)
    assert last["val_near_loss"] == pytest.approx(entropy, rel=1e-5)
    assert last["val_near_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    assert made.evaluate(*NEAR, verbose=0).keys() == {"loss", "cross_entropy", "accuracy"}


def test_they_leave_no_trace_in_the_state_and_are_compiled_once():
    made, plain = trainer(), trainer()
    sets = {"far": eg.Evaluation(FAR, metrics=[top, eg.metrics.Recall(class_id=1)]), "near": NEAR}
    made.fit(X, Y, batch_size=16, epochs=4, validation_data=sets, verbose=0)
    plain.fit(X, Y, batch_size=16, epochs=4, verbose=0)
    assert jax.tree.structure(made.state.losses_and_metrics) == jax.tree.structure(plain.state.losses_and_metrics)
    jax.tree.map(np.testing.assert_array_equal, made.state.params, plain.state.params)
    assert made._session.executor.traces["test"] == 2  # one step for each set


def test_they_are_monitored_logged_and_resumed(tmp_path):
    def fit(steps):
        made = trainer()
        keep = eg.callbacks.ModelCheckpoint(tmp_path / "run", monitor="val_far_recall", every=eg.Every(steps=2))
        stop = EarlyStopping("val_far_recall", patience=99)
        sets = {"far": eg.Evaluation(FAR, metrics=eg.metrics.Recall(class_id=1)), "near": NEAR}
        options = {"validation_data": sets, "validation_freq": eg.Every(steps=2), "callbacks": [keep, stop]}
        made.fit(X, Y, batch_size=8, max_steps=steps, resume="auto", verbose=0, **options)
        return made, keep, stop

    fit(4)
    made, keep, stop = fit(9)
    records = made.history.evaluations["far"]
    assert [list(one) for one in records] == [
        ["epoch", "step", "examples", "val_far_loss", "val_far_cross_entropy", "val_far_recall"]
    ] * 4
    assert keep.best_value == stop.best == max(one["val_far_recall"] for one in records)


def test_a_trainer_without_metrics_can_have_them_in_an_evaluation():
    made = trainer(metrics=None)
    history = made.fit(X, Y, batch_size=16, validation_data={"a": eg.Evaluation(NEAR, metrics=top)}, verbose=0).history
    assert history["val_a_top"] == pytest.approx([by_hand(made, NEAR)[1]], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: eg.Evaluation(NEAR, metrics="accuracy"), TypeError, "accuracy"),
        (lambda: eg.Evaluation(NEAR, loss=3), TypeError, "3"),
    ],
)
def test_what_is_no_metric_is_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_step_that_logs_its_own_values_is_named():
    made = eg.Trainer(Managed(), optimizer=optax.adam(0.1))
    with pytest.raises(ValueError, match=r"'val_a_' has losses or metrics of its own, but Managed\.managed_test"):
        made.fit(X[:, :3], X[:, :2], validation_data={"a": eg.Evaluation(NEAR, metrics=top)}, verbose=0)
    assert made.step == 0
