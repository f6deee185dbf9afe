"""Faults of earlier versions of this library, each by name."""

import math

import pytest
from fake_run import run

import elegy as eg
from elegy.callbacks import HOOKS, CallbackList, Event, ModelCheckpoint, TerminateOnNaN
from elegy.types import Every


def test_the_nan_hook_fires():
    callback = TerminateOnNaN(every=Every(steps=1))
    assert [hook for hook in HOOKS if CallbackList([callback]).listens(hook)] == [
        "on_train_begin",
        "on_train_end",
        "on_epoch_begin",
        "on_epoch_end",
        "on_train_batch_end",
    ]
    with pytest.warns(RuntimeWarning, match="'loss' is nan at step 2 of epoch 1"):
        trainer = run([callback], [{"loss": 1.0}], batch_logs=lambda step: {"loss": math.nan if step > 1 else 1.0})
    assert (trainer.stop_training, trainer.step) == (True, 2)


def test_the_save_frequency_hook_fires(tmp_path):
    trainer = run([ModelCheckpoint(tmp_path, every=Every(steps=3), save_top_k=-1)], [{"loss": 1.0}] * 2)
    assert trainer.saved == ["step_00000003", "step_00000006"]


def test_saving_asks_the_trainer_for_nothing_that_it_has_not(tmp_path):
    asked: list[str] = []

    class Strict:
        """A trainer of which every attribute that is asked for is noted."""

        def __getattribute__(self, name):
            asked.append(name)
            return {"stop_training": False}.get(name, lambda path, saver, then: path.mkdir())

    callbacks = CallbackList([ModelCheckpoint(tmp_path, monitor="loss")])
    callbacks.emit("on_train_begin", Event(Strict(), "train", step=0, epoch=0))
    callbacks.emit("on_epoch_end", Event(Strict(), "train", step=4, epoch=0, logs={"loss": 1.0}))
    callbacks.emit("on_train_end", Event(Strict(), "train", step=4, epoch=0, ended="finished"))
    assert {"save", "state"} <= set(asked) <= set(dir(eg.Trainer(eg.ElegyModule())))
    assert not [name for name in asked if name.startswith("_")]
    assert (tmp_path / "step_00000004").is_dir()
