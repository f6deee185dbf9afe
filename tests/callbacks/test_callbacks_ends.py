"""How runs end, go on and go back: what is on disk is what an undisturbed run would leave there."""

from __future__ import annotations

import contextlib
import pickle
import signal

import flax.linen as nn
import jax
import numpy as np
import optax
import psutil
import pytest
from boring_modules import assert_same_bits, host
from some_cases import some

import elegy as eg
from elegy.callbacks import Callback, CSVLogger, EarlyStopping, ModelCheckpoint, TerminateOnNaN, model_checkpoint
from elegy.checkpoint import find_checkpoints
from elegy.errors import CheckpointError

X = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
Y = (3 * X + 1).astype(np.float32)


def make(**kwargs):
    return eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), **kwargs)


def fit(callbacks, trainer=None, **kwargs):
    trainer = trainer or make()
    trainer.fit(X, Y, batch_size=16, verbose=0, callbacks=callbacks, **kwargs)
    return trainer


def names(directory):
    return [path.name for path in find_checkpoints(directory)]


def restored(directory):
    trainer = make()
    trainer.init_on_batch(X[:16], Y[:16])
    trainer.restore(directory)
    return trainer


class PutBack(Callback):
    """Puts the first weights in the place of the run's own when it is over, however it ended."""

    def on_train_begin(self, event):
        self.params = event.trainer.state.get_params()

    def on_train_end(self, event):
        event.trainer.state = event.trainer.state.set_params(self.params)


def best_is_first():
    return EarlyStopping("loss", mode="max", patience=100, restore_best_weights=True)


EVERY = [eg.Every(epochs=20), eg.Every(epochs=10), eg.Every(steps=7), eg.Every(epochs=1)]
ENDS = [{"epochs": 15}, {"epochs": 40, "max_steps": 50}, {"epochs": 12, "max_steps": 48}]


@pytest.mark.parametrize(
    ("every", "end", "replacing"),
    some([(EVERY[i % 4], ENDS[i % 3], (PutBack, best_is_first)[i // 2 % 2]) for i in range(6)], 3),
)
def test_a_complete_run_is_saved_with_its_last_weights(tmp_path, replacing, every, end):
    plain = fit([], **end)
    replaced = fit([replacing(), ModelCheckpoint(tmp_path, every=every)], **end)
    assert not np.array_equal(replaced.state.params["kernel"], plain.state.params["kernel"])
    assert names(tmp_path) == [f"step_{plain.step:08d}"]
    assert_same_bits(host(restored(tmp_path).state), host(plain.state))
    longer = fit([replacing(), ModelCheckpoint(tmp_path / "longer")], epochs=60, max_steps=80, resume=tmp_path)
    whole = fit([replacing()], epochs=60, max_steps=80)
    assert longer.history.history == whole.history.history
    if replacing is best_is_first:
        assert_same_bits(host(longer.state), host(whole.state))


def test_a_failing_save_of_the_end_raises_and_files_are_closed(tmp_path, monkeypatch):
    def full(trainer, path, **kwargs):
        raise OSError("no space left")

    log = CSVLogger(tmp_path / "log.csv")
    monkeypatch.setattr(eg.Trainer, "save", full)
    with pytest.raises(OSError, match="no space left"):
        fit([log, ModelCheckpoint(tmp_path / "saved", every=eg.Every(epochs=9))], epochs=2)
    assert not [file for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path / "log"))]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


class At(Callback):
    """Does something after a step."""

    batch_hooks_read = "state"

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_end(self, event):
        if event.step == self.step:
            self.act()


def fail():
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("act", "options"),
    [(lambda: signal.raise_signal(signal.SIGTERM), {}), (fail, {"save_on_exception": True})],
    ids=["SIGTERM", "exception"],
)
@pytest.mark.parametrize(("bad", "saved"), [(5, "step_00000004"), (99, "step_00000007")])
@pytest.mark.filterwarnings("ignore:training is stopped")
def test_a_lost_state_is_not_saved_where_the_run_was_cut(tmp_path, act, options, bad, saved):
    def batches():
        for k in range(50):
            yield X[:16], Y[:16] * (np.nan if k == bad else 1)

    trainer = make()
    saving = ModelCheckpoint(tmp_path, every=eg.Every(steps=4), **options)
    callbacks = [At(7, act), TerminateOnNaN(), saving]
    with pytest.raises(ZeroDivisionError) if act is fail else contextlib.nullcontext():
        trainer.fit(batches(), steps_per_epoch=50, epochs=1, verbose=0, callbacks=callbacks)
    assert trainer.step == 7
    assert names(tmp_path) == [saved]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored(tmp_path).variables()))


class Saves(Callback):
    """Saves before the callbacks that are listed after it hear of the moment."""

    batch_hooks_read = "state"

    def __init__(self, path, hook, steps):
        self.path, self.steps = path, steps
        setattr(self, hook, self.save)

    def save(self, event):
        if event.step in self.steps:
            event.trainer.save(self.path)


MOMENTS = [
    *[("on_train_batch_end", at) for at in (4, 6, 8, 12)],
    *[(hook, at) for hook in ("on_test_end", "on_epoch_end") for at in (4, 8, 12)],
]
ROWS = [eg.Every(epochs=1), eg.Every(steps=1), eg.Every(steps=3), eg.Every(examples=32)]


@pytest.mark.parametrize(
    ("hook", "at", "every"),
    [
        pytest.param(*moment, ROWS[i % 4], marks=pytest.mark.slow if i % 2 else ())
        for i, moment in enumerate([*MOMENTS, *MOMENTS[:3]])
    ],
)
def test_a_row_that_came_after_the_checkpoint_of_its_step_is_kept(tmp_path, hook, at, every):
    def run(name, **kwargs):
        logger = CSVLogger(tmp_path / name, every=every)
        return fit([Saves(tmp_path / "saved", hook, [at]), logger], validation_split=0.1, **kwargs)

    run("whole.csv", epochs=5)
    run("cut.csv", epochs=4)
    run("cut.csv", epochs=5, resume=tmp_path / "saved")
    assert (tmp_path / "cut.csv").read_text() == (tmp_path / "whole.csv").read_text()


class Poison(Callback):
    """Spoils the weights once, after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, event):
        if event.epoch == self.epoch:
            self.epoch = None
            state = event.trainer.state
            event.trainer.state = state.set_params(jax.tree.map(lambda leaf: leaf * np.nan, state.get_params()))


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("every", [eg.Every(steps=2), eg.Every(examples=32), eg.Every(examples=80)])
def test_a_run_that_goes_back_acts_where_an_undisturbed_one_acts(tmp_path, every):
    def steps(name, *others):
        log = CSVLogger(tmp_path / f"{name}.csv", every=every)
        saving = ModelCheckpoint(tmp_path / name, every=eg.Every(epochs=2))
        fit([log, *others, saving], make(nonfinite="rollback"), epochs=5)
        return [line.split(",")[1] for line in (tmp_path / f"{name}.csv").read_text().splitlines()]

    assert steps("spoilt", Poison(2)) == steps("plain")


@pytest.mark.parametrize("async_save", [True, False])
def test_a_deletion_that_failed_is_tried_again(tmp_path, monkeypatch, async_save):
    tries = []

    def remove(path):
        tries.append(path.name)
        if len(tries) == 1:
            raise CheckpointError("503, try again")
        return delete(path)

    delete = model_checkpoint.remove
    monkeypatch.setattr(model_checkpoint, "remove", remove)
    saving = ModelCheckpoint(tmp_path, async_save=async_save)
    with pytest.warns(UserWarning, match="an old checkpoint could not be deleted: 503, try again"):
        fit([saving], epochs=4)
    assert names(tmp_path) == ["step_00000016"] == [path.name for path in saving.paths]
    assert tries[:2] == ["step_00000004"] * 2


def test_a_trainer_with_callbacks_can_be_pickled_after_a_run(tmp_path):
    saving, watching = ModelCheckpoint(tmp_path / "saved", "loss"), TerminateOnNaN()
    fit([saving, watching], epochs=2)
    copy = pickle.loads(pickle.dumps(saving))
    assert (copy.paths, copy.best_path, copy.best_value) == (saving.paths, saving.best_path, saving.best_value)
    trainer = make(callbacks=[ModelCheckpoint(tmp_path / "other"), watching])
    fit([], trainer, epochs=2)
    trainer.save_pickle(tmp_path / "trainer.pkl")
    again = eg.load(tmp_path / "trainer.pkl", allow_code=True)
    fit([], again, epochs=1)
    assert names(tmp_path / "other") == ["step_00000012"]


def test_two_savers_of_one_address_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    for one, other in [
        ("memory://ends/run", "memory:///ends/run"),
        ("memory://ends/run", "memory://ends/run/"),
        (tmp_path / "run", f"file://{tmp_path}/run"),
        (f"file://{tmp_path}/link", f"local://{tmp_path}/run"),
    ]:
        with pytest.raises(ValueError, match="two ModelCheckpoints save to"):
            fit([ModelCheckpoint(one), ModelCheckpoint(other, "loss")])
    fit([ModelCheckpoint(tmp_path / "run"), ModelCheckpoint(f"file://{tmp_path}/other")])
    assert names(tmp_path / "run") == names(tmp_path / "other") == ["step_00000004"]
