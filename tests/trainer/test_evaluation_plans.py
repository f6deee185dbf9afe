"""Random plans of evaluations, saves and stops: a monitored value always belongs to the weights that are saved."""

from __future__ import annotations

import functools
import math
import signal

import numpy as np
import pytest

import elegy as eg
from elegy.callbacks import EarlyStopping, ModelCheckpoint

X = np.zeros((12, 1), np.float32)  # six batches of two
STEPS, EPOCHS = 6, 3


class Walk(eg.ElegyModule):
    """Its parameter counts steps; its loss on a set is drawn for each step, so that a value tells its weights."""

    table: tuple = eg.static_field(default=())

    def init_step(self, key, batch):
        return self.replace(key=key, params={"n": np.zeros((), np.int32)})

    def train_step(self, batch, batch_idx, epoch_idx):
        return {"loss": 0.0}, self.replace(params={"n": np.int32(int(self.params["n"]) + 1)})

    def test_step(self, batch, batch_idx):
        return {"loss": self.table[int(batch[0, 0])][int(self.params["n"])]}, self


class Ends(eg.Callback):
    """Stops, interrupts or breaks a run in a random hook at a random step, once."""

    batch_hooks_read = "logs"

    def __init__(self, hook, step, how):
        def end(event):
            if event.step >= step and not self.done:
                self.done = True
                if how == "stop":
                    event.trainer.stop_training = True
                elif how == "signal":
                    signal.raise_signal(signal.SIGTERM)
                else:
                    raise RuntimeError("crash")

        self.done = False
        setattr(self, hook, end)


def plan_of(seed):
    """A random plan: arguments of `fit`, and what ends its first run."""
    dice = np.random.default_rng(seed)

    def interval():
        kind = dice.choice(["steps", "steps", "epochs", "examples"])
        most = {"steps": 8, "epochs": 2, "examples": 15}[kind]
        return eg.Every(**{str(kind): int(dice.integers(1, most + 1))})

    table = dice.permutation(2 * (STEPS * EPOCHS + 1)).astype(float).reshape(2, -1)
    table[dice.random(table.shape) < 0.1] = math.nan
    hooks = ["on_train_batch_end", "on_test_begin", "on_test_end", "on_evaluation_end", "on_epoch_end"]
    ends = None
    if dice.random() < 0.8:
        ends = Ends(str(dice.choice(hooks)), int(dice.integers(1, 19)), str(dice.choice(["stop", "signal", "crash"])))
    return {
        "table": tuple(tuple(row) for row in table.tolist()),
        "intervals": (interval(), interval()),
        "saves": interval(),
        "top": int(dice.choice([1, 2, -1])),
        "mode": str(dice.choice(["min", "max"])),
        "patience": int(dice.choice([0, 1, 3, 99])),
        "restore": bool(dice.random() < 0.5),
        "known": bool(dice.random() < 0.7),
        "background": bool(dice.random() < 0.3),
        "ends": ends,
    }


def run(folder, plan):
    """Runs a plan, and resumes it if it was ended."""
    trainer = eg.Trainer(Walk(table=plan["table"]))
    stop = EarlyStopping(
        "val_a_loss", mode=plan["mode"], patience=plan["patience"], restore_best_weights=plan["restore"]
    )
    keep = ModelCheckpoint(
        folder,
        monitor="val_a_loss",
        mode=plan["mode"],
        every=plan["saves"],
        save_top_k=plan["top"],
        async_save=plan["background"],
    )
    batches = [(X[:2],)] * STEPS
    sets = {
        name: eg.Evaluation(np.full((4, 1), k, np.float32), every=every, batch_size=2)
        for k, (name, every) in enumerate(zip("ab", plan["intervals"], strict=True))
    }
    callbacks = [stop, *([] if plan["ends"] is None else [plan["ends"]]), keep]
    ended = None
    try:
        trainer.fit(
            batches if plan["known"] else lambda: iter(batches),
            epochs=EPOCHS,
            validation_data=sets,
            callbacks=callbacks,
            resume="auto",
            verbose=0,
        )
    except RuntimeError as error:
        ended = error
    return trainer, stop, keep, ended


@functools.cache
def reader():
    trainer = eg.Trainer(Walk())
    trainer.init_on_batch(X[:2])
    return trainer


def weights(path):
    reader().restore(path)
    return int(reader().state.params["n"])


def check(plan, trainer, stop, keep):
    of_a = dict(enumerate(plan["table"][0]))
    best = min if plan["mode"] == "min" else max
    for name, k in (("a", 0), ("b", 1)):
        records = trainer.history.evaluations.get(name, [])
        steps = [one["step"] for one in records]
        assert steps == sorted(set(steps))
        np.testing.assert_equal(
            [one[f"val_{name}_loss"] for one in records], [plan["table"][k][step] for step in steps]
        )
    for saved in keep._saved:
        if saved.value is not None:
            assert saved.value == of_a[saved.step]
            assert weights(keep.directory / saved.name) == saved.step
    if keep.best_value is not None:
        assert of_a[weights(keep.best_path)] == keep.best_value
        assert keep.best_value == best(saved.value for saved in keep._saved if saved.value is not None)
    if stop.best is not None:
        assert of_a[stop.best_step] == stop.best
    return of_a


def check_end(plan, trainer, stop, keep, of_a):
    """Of a run that ended by itself: the best of all evaluations is known."""
    best = min if plan["mode"] == "min" else max
    evaluated = [one["step"] for one in trainer.history.evaluations.get("a", [])]
    compared = [of_a[step] for step in evaluated if not math.isnan(of_a[step])]
    assert stop.best == (best(compared) if compared else None)
    if plan["saves"].unit != "epochs":
        assert keep.best_value == stop.best
    restored = plan["restore"] and stop.best is not None
    assert int(trainer.state.params["n"]) == (stop.best_step if restored else trainer.step)


@pytest.mark.filterwarnings("ignore:the data of fit", "ignore:the order of")
@pytest.mark.parametrize(
    "seeds", [range(5), *(pytest.param(range(k, k + 99), marks=pytest.mark.slow) for k in range(5, 500, 99))]
)
def test_the_monitored_value_belongs_to_the_saved_weights(tmp_path, seeds):
    for seed in seeds:
        plan = plan_of(seed)
        try:
            trainer, stop, keep, ended = run(tmp_path / str(seed), plan)
            of_a = check(plan, trainer, stop, keep)
            # A run that was stopped ends with the best weights, if they are restored: it does not go on from the last.
            stopped = trainer.stop_training and stop.stopped_epoch is None and not plan["restore"]
            if ended or trainer.interrupted or stopped:
                trainer, stop, keep, ended = run(tmp_path / str(seed), plan)
                assert ended is None
                of_a = check(plan, trainer, stop, keep)
            check_end(plan, trainer, stop, keep, of_a)
        except BaseException as error:
            error.add_note(f"plan {seed}: {plan}")
            raise
