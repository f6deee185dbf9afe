"""Evaluations inside of epochs: when they run, of which weights, and who learns of their values."""

from __future__ import annotations

import csv
import itertools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from some_cases import some
from tensorboardX.proto import event_pb2

import elegy as eg
from elegy.callbacks import CSVLogger, EarlyStopping, ModelCheckpoint

X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32))[:, None]
NEAR, FAR = (X[:10], Y[:10]), (3 * X[10:30], 3 * Y[10:30])
BATCH, STEPS = 4, 12  # twelve steps an epoch


def trainer(strategy="jit", rate=0.02, **options):
    return eg.Trainer(
        nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(rate), strategy=strategy, **options
    )


def fit(made, sets=NEAR, data=(X, Y), **options):
    size = BATCH if len(data) == 2 else None
    return made.fit(*data, batch_size=size, **{"epochs": 2, "validation_data": sets, "verbose": 0, **options})


def loss(state, data):
    x, y = data
    return float(np.mean((x @ np.asarray(state.params["kernel"]) + np.asarray(state.params["bias"]) - y) ** 2))


class ByHand(eg.Callback):
    """Computes the losses of both sets after each step, outside of the trainer."""

    def __init__(self):
        self.near, self.far = {}, {}

    def on_train_batch_end(self, event):
        self.near[event.step], self.far[event.step] = loss(event.trainer.state, NEAR), loss(event.trainer.state, FAR)


class Moments(eg.Callback):
    """Notes the step and the values of every evaluation."""

    def __init__(self):
        self.seen = []

    def on_evaluation_end(self, event):
        self.seen.append(("step", event.step, event.evaluated, event.evaluation_logs))

    def on_epoch_end(self, event):
        if event.evaluated:
            self.seen.append(("epoch", event.step, event.evaluated, event.evaluation_logs))


@pytest.fixture(scope="module")
def by_hand():
    made, losses = trainer(), ByHand()
    fit(made, None, callbacks=[losses], steps_per_execution=1)
    return losses


@pytest.mark.parametrize(("strategy", "fuse"), [("jit", "auto"), ("jit", 1), ("eager", 1), ("data_parallel", 8)])
def test_an_evaluation_at_a_step_is_of_the_weights_of_that_step(by_hand, strategy, fuse):
    sets = {"near": NEAR, "far": eg.Evaluation(FAR, every=eg.Every(examples=6 * BATCH), batch_size=7)}
    moments = Moments()
    made = trainer(strategy)
    history = fit(made, sets, validation_freq=eg.Every(steps=5), callbacks=[moments], steps_per_execution=fuse)
    near, far = history.evaluations["near"], history.evaluations["far"]
    assert [one["step"] for one in near] == [5, 10, 15, 20]
    assert [(one["step"], one["epoch"], one["examples"]) for one in far] == [
        (6 * k, (k - 1) // 2, 24 * k) for k in range(1, 5)
    ]
    for name, records, losses in (("near", near, by_hand.near), ("far", far, by_hand.far)):
        values = [one[f"val_{name}_loss"] for one in records]
        assert values == pytest.approx([losses[one["step"]] for one in records], rel=1e-5)
    at_ends = [step for kind, step, _, _ in moments.seen if kind == "epoch"]
    assert at_ends == [12, 24]  # those at the last step of an epoch run when it ends
    assert [step for _, step, _, _ in moments.seen] == [5, 6, 10, 12, 15, 18, 20, 24]
    assert history.history["val_near_loss"] == [near[1]["val_near_loss"], near[3]["val_near_loss"]]
    assert history.history["val_far_loss"] == [far[1]["val_far_loss"], far[3]["val_far_loss"]]


@pytest.mark.parametrize(
    ("every", "source"),
    some([(1, "arrays"), (7, "iterable"), (3, "arrays"), (1, "iterable"), (7, "arrays"), (3, "iterable")], 3),
)
def test_training_goes_on_to_the_same_bits(every, source):
    data = (X, Y) if source == "arrays" else ([(X[i : i + 4], Y[i : i + 4]) for i in range(0, 48, 4)],)
    plain, watched = trainer(), trainer()
    fuse = "auto" if source == "arrays" else 4
    fit(plain, None, data, steps_per_execution=fuse)
    history = fit(watched, NEAR, data, validation_freq=eg.Every(steps=every), steps_per_execution=fuse)
    jax.tree.map(np.testing.assert_array_equal, plain.state.params, watched.state.params)
    assert plain.history.history["loss"] == history.history["loss"]
    assert [one["step"] for one in history.evaluations["val"]] == [*range(every, 25, every)]


def test_no_evaluation_runs_twice_at_the_unknown_end_of_an_iterable():
    def batches():
        return ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 48, 4))

    sets = {"often": eg.Evaluation(NEAR, every=eg.Every(steps=6)), "epochs": NEAR}
    moments = Moments()
    fit(trainer(), sets, (batches,), callbacks=[moments])
    assert [(kind, step, names) for kind, step, names, _ in moments.seen] == [
        (kind, step + more, (f"val_{name}_",))
        for more in (0, 12)
        for kind, step, name in (("step", 6, "often"), ("step", 12, "often"), ("epoch", 12, "epochs"))
    ]


@pytest.mark.parametrize("logs_every", [eg.Every(epochs=1), eg.Every(steps=4)])
def test_loggers_have_a_record_for_each_evaluation(tmp_path, logs_every):
    loggers = [
        CSVLogger(tmp_path / "log.csv", every=logs_every),
        eg.callbacks.TensorBoard(tmp_path / "tb", every=logs_every),
    ]
    history = fit(trainer(), callbacks=loggers, validation_freq=eg.Every(steps=5))
    wanted = {one["step"]: one["val_loss"] for one in history.evaluations["val"]}
    with (tmp_path / "log.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_loss"]]
    assert {int(row["step"]): float(row["val_loss"]) for row in rows} == wanted
    assert all(row["loss"] for row in rows)
    drawn = scalars(tmp_path / "tb" / "validation")
    assert drawn == {("epoch_loss", step): pytest.approx(value) for step, value in wanted.items()} | {
        key: drawn[key] for key in drawn if "squared" in key[0]
    }
    assert {step for name, step in scalars(tmp_path / "tb" / "train") if name == "epoch_loss"} == {12, 24}


def scalars(folder):
    found = {}
    for path in folder.glob("events*"):
        data = path.read_bytes()
        while data:  # length, its checksum, the record, its checksum
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def test_a_line_is_printed_for_each_evaluation(capsys):
    fit(trainer(), verbose=2, epochs=1, validation_freq=eg.Every(steps=5))
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["epoch 1/1", f"step {step}"] for step in (5, 10, 12)]
    names = [[part.split()[0] for part in line[2:]] for line in lines]
    assert names[:2] == [["loss", "val_loss"]] * 2
    assert "val_loss" not in names[2]


@pytest.mark.parametrize("first", [True, False])
def test_stops_and_saves_refer_to_the_evaluation_that_ran(tmp_path, by_hand, first):
    """The losses are assigned by a callback, so that the second evaluation is the best."""

    class Score(eg.Callback):
        def on_test_end(self, event):
            event.log("score", [3.0, 1.0, 2.0, 4.0, 5.0][len(scored)])
            scored.append(event.step)

    scored = []
    stop = EarlyStopping("val_score", mode="min", patience=2, restore_best_weights=True)
    keep = ModelCheckpoint(tmp_path, monitor="val_score", mode="min", every=eg.Every(epochs=1))
    made = trainer()
    fit(
        made,
        callbacks=[Score(), stop, keep] if first else [stop, keep, Score()],
        epochs=9,
        validation_freq=eg.Every(steps=5),
    )
    assert scored == [5, 10, 15, 20]
    assert (made.step, stop.best, stop.best_step, stop.best_epoch) == (20, 1.0, 10, 0)
    assert loss(made.state, NEAR) == pytest.approx(by_hand.near[10], rel=1e-5)
    assert (keep.best_value, keep.best_path.name) == (1.0, "step_00000010")
    other = trainer()
    other.init_on_batch(X[:4], Y[:4])
    other.restore(keep.best_path)
    assert loss(other.state, NEAR) == pytest.approx(by_hand.near[10], rel=1e-5)


def test_a_stop_in_the_first_epoch_needs_a_second_evaluation():
    stop = EarlyStopping("val_loss", mode="max")  # the loss falls
    made = trainer()
    fit(made, callbacks=[stop], validation_freq=eg.Every(steps=2))
    assert (made.step, stop.best_step) == (4, 2)


def test_a_checkpoint_without_an_evaluation_at_its_step_has_no_value(tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    history = fit(trainer(), callbacks=[keep], epochs=1, validation_freq=eg.Every(steps=5))
    values = {one.step: one.value for one in keep._saved}
    assert values == {**{one["step"]: one["val_loss"] for one in history.evaluations["val"]}, 12: None}
    assert next(iter(history.history)) == "loss"  # as after each epoch: the training's values first


def test_a_value_that_a_callback_adds_is_in_the_record_of_the_evaluation(tmp_path):
    class Gap(eg.Callback):
        def on_evaluation_end(self, event):
            event.log("val_gap", event.logs["val_loss"] - event.logs["loss"])

    stop, log = EarlyStopping("val_gap", mode="min", patience=99), CSVLogger(tmp_path / "log.csv")
    history = fit(trainer(), callbacks=[stop, log, Gap()], epochs=1, validation_freq=eg.Every(steps=5))
    gaps = [one["val_gap"] for one in history.evaluations["val"]]
    with (tmp_path / "log.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_gap"]]
    assert gaps == [float(row["val_loss"]) - float(row["loss"]) for row in rows]
    assert stop.best == min(gaps)
    assert history.history["val_gap"] == gaps[-1:]


def test_intervals_in_seconds_end_at_the_next_execution(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("elegy.trainer.clock.RunClock.seconds", property(lambda self: next(ticks) / 10))
    moments = Moments()
    fit(trainer(), callbacks=[moments], validation_freq=eg.Every(seconds=1.0), steps_per_execution=1)
    assert 1 < len(moments.seen) < 24
