"""A run that is over stays over: the same script again ends at once, with the same result."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import signal

import jax
import numpy as np
import optax
import pytest
from boring_modules import assert_same_bits, host

import elegy as eg
from elegy.callbacks import EarlyStopping, ModelCheckpoint
from elegy.checkpoint import checkpoint_name, find_checkpoints, store

rng = np.random.default_rng(0)
X = rng.normal(size=(40, 3)).astype(np.float32)
Y = rng.integers(0, 2, 40)  # noise: the validation soon gets worse
PATIENCE, STEPS = 2, 4


class Linear(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params={"w": 5 * jax.random.normal(key, (3, 2))})

    def apply(self, key, inputs, training):
        return inputs @ self.params["w"], self


def run(directory, *, patience=PATIENCE, restore=False, every=None, verbose=0, monitor=None, callbacks=(), **kwargs):
    trainer = eg.Trainer(Linear(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(1.0))
    stopping = EarlyStopping("val_loss", patience=patience, restore_best_weights=restore)
    saving = ModelCheckpoint(directory, monitor, every=every or eg.Every(epochs=1))
    options = {"epochs": 60, "batch_size": 8, "validation_split": 0.2, "resume": "auto", "verbose": verbose}
    trainer.fit(X, Y, callbacks=[stopping, saving, *callbacks], **{**options, **kwargs})
    return trainer, stopping


def assert_same(one, other):
    assert (one.step, one.epoch, one.history.history) == (other.step, other.epoch, other.history.history)
    assert one.history.epoch == other.history.epoch
    assert_same_bits(host(one.state), host(other.state))


@pytest.mark.parametrize("steps", [2, 4, 6])  # inside of the first epoch, at its end, inside of the second
@pytest.mark.parametrize("every", [eg.Every(epochs=1), eg.Every(steps=1)], ids=["epochs", "steps"])
def test_a_run_that_max_steps_ended_has_the_history_of_all_its_steps_again(tmp_path, every, steps):
    options = {"every": every, "max_steps": steps, "validation_freq": eg.Every(steps=2), "patience": 9}
    first, _ = run(tmp_path, **options)
    assert len(first.history.history["loss"]) == -(-steps // STEPS)
    for _ in range(2):
        again, _ = run(tmp_path, **options)
        assert_same(again, first)
        assert again.history.evaluations == first.history.evaluations


@pytest.mark.parametrize("monitor", [None, "val_loss"])
@pytest.mark.parametrize("every", [eg.Every(epochs=1), eg.Every(steps=3)], ids=["epochs", "steps"])
@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.some(4)
def test_a_run_that_stopped_early_stays_stopped(tmp_path, restore, every, monitor):
    options = {"restore": restore, "every": every, "monitor": monitor}
    first, stopping = run(tmp_path, **options)
    assert stopping.stopped_epoch is not None
    assert first.epoch < 60
    if restore:
        values = first.history.history["val_loss"]
        np.testing.assert_allclose(first.evaluate(X[32:], Y[32:], verbose=0)["loss"], min(values), rtol=1e-6)
    for _ in range(2):
        again, remembered = run(tmp_path, **options)
        assert_same(again, first)
        assert again.stop_training
        assert (remembered.best, remembered.stopped_epoch) == (stopping.best, stopping.stopped_epoch)


@pytest.mark.parametrize("assigns", [False, True])
def test_the_end_is_saved_if_its_step_was_saved_before_the_epoch_ended(tmp_path, assigns):
    def halve(event):
        if assigns:
            params = jax.tree.map(lambda leaf: leaf / 2, event.trainer.state.params)
            event.trainer.state = event.trainer.state.replace(params=params)

    ended = []
    callbacks = [eg.callbacks.LambdaCallback(on_epoch_end=lambda event: (ended.append(event.epoch), halve(event)))]
    options = {"every": eg.Every(steps=2), "epochs": 3, "patience": 60, "callbacks": callbacks}
    first, _ = run(tmp_path, **options)
    assert first.step == 3 * STEPS
    again, _ = run(tmp_path, **options)
    assert ended == [0, 1, 2]  # the resumed run was complete: no hook again
    assert_same(again, first)

    restored = eg.Trainer(Linear(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(1.0))
    restored.restore(tmp_path)
    for trainer in (first, restored):
        trainer.fit(X, Y, batch_size=8, validation_split=0.2, verbose=0)  # the permutation of the fourth epoch
    assert_same(restored, first)


def test_more_patience_goes_on_as_the_patient_run_would(tmp_path):
    first, _ = run(tmp_path / "a")
    second, _ = run(tmp_path / "a", patience=PATIENCE + 3)
    patient, _ = run(tmp_path / "b", patience=PATIENCE + 3)
    assert first.epoch < patient.epoch
    assert_same(second, patient)


def test_without_the_callback_the_run_goes_on(tmp_path):
    first, _ = run(tmp_path)
    trainer = eg.Trainer(Linear(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(1.0))
    options = {"batch_size": 8, "validation_split": 0.2, "verbose": 0}
    trainer.fit(X, Y, epochs=first.epoch + 1, resume=tmp_path, **options)
    assert trainer.epoch == first.epoch + 1


def test_the_best_weights_of_a_resumed_run_are_not_forgotten(tmp_path):
    first, _ = run(tmp_path, restore=True)
    for epochs in (first.epoch + 1, first.epoch + 8):
        second, later = run(tmp_path, restore=True, epochs=epochs, patience=60)
        assert second.epoch == epochs
        assert later.best <= min(first.history.history["val_loss"])
        np.testing.assert_allclose(second.evaluate(X[32:], Y[32:], verbose=0)["loss"], later.best, rtol=1e-6)


@pytest.mark.parametrize("cut", [{"epochs": 6}, {"max_steps": 17}, {"max_steps": 18, "every": eg.Every(steps=4)}])
def test_a_longer_run_goes_on_from_the_last_weights_not_the_best(tmp_path, cut):
    options = {"restore": True, "patience": 60}
    run(tmp_path / "a", **{"epochs": 9, **options, **cut})
    longer, _ = run(tmp_path / "a", **{**options, "epochs": 9, "every": cut.get("every", eg.Every(epochs=1))})
    whole, _ = run(tmp_path / "b", **{**options, "epochs": 9, "every": cut.get("every", eg.Every(epochs=1))})
    assert longer.history.history == whole.history.history
    assert_same_bits(host(longer.state), host(whole.state))  # the best one


def test_an_interrupted_run_keeps_its_last_weights(tmp_path):
    class Interrupt(eg.Callback):
        def on_epoch_end(self, event):
            if event.epoch == 4:
                signal.raise_signal(signal.SIGTERM)

    options = {"restore": True, "patience": 60, "epochs": 8, "monitor": None}
    whole, _ = run(tmp_path / "a", **{**options, "restore": False})
    cut, _ = run(tmp_path / "b", callbacks=[Interrupt()], **options)
    assert cut.interrupted == signal.SIGTERM
    resumed, _ = run(tmp_path / "b", **{**options, "restore": False})
    assert_same(resumed, whole)


@pytest.mark.parametrize("every", [eg.Every(epochs=1), eg.Every(steps=3)], ids=["epochs", "steps"])
@pytest.mark.parametrize("how", ["signal", "failure", "saved by hand"])
def test_a_run_that_was_cut_ends_with_the_best_weights_of_the_whole_run(tmp_path, how, every):
    options = {"restore": True, "patience": 9, "every": every}
    whole, best = run(tmp_path / "a", **options)
    assert 0 < best.best_epoch < whole.epoch - 9

    class Cut(eg.Callback):
        def on_epoch_end(self, event):
            if event.epoch == best.best_epoch + 4 and how == "failure":
                raise ZeroDivisionError
            if event.epoch == best.best_epoch + 4:
                signal.raise_signal(signal.SIGTERM)

    with contextlib.suppress(ZeroDivisionError):
        cut, _ = run(tmp_path / "b", callbacks=[Cut()], **options)
    if how == "saved by hand":
        shutil.rmtree(tmp_path / "b")
        cut.save(tmp_path / "b" / checkpoint_name(cut.step))
    resumed, _ = run(tmp_path / "b", **options)
    assert_same(resumed, whole)
    # Weights are read as the state is, whatever else the checkpoint holds.
    weights, state = (eg.Trainer(Linear(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(1.0)) for _ in range(2))
    weights.init_on_batch(X, Y)
    weights.load_weights(find_checkpoints(tmp_path / "b")[-1])
    state.init_on_batch(X, Y)
    state.restore(find_checkpoints(tmp_path / "b")[-1])
    assert_same_bits(host(weights.state.params), host(state.state.params))


def test_the_best_state_is_saved_once_where_it_is_the_last_one(tmp_path):
    options = {"restore": True, "patience": 9}
    whole, best = run(tmp_path / "a", **options)

    class Cut(eg.Callback):
        def on_epoch_end(self, event):
            if event.epoch == best.best_epoch:
                signal.raise_signal(signal.SIGTERM)

    run(tmp_path / "b", callbacks=[Cut()], **options)
    kept = [store.read_metadata(path)["kept"] for path in find_checkpoints(tmp_path / "b")]
    assert kept[-1] == {}
    resumed, _ = run(tmp_path / "b", **options)
    assert_same(resumed, whole)


@pytest.mark.parametrize(("every", "steps"), [(3, 10), (5, 10), (4, 3)])
def test_the_end_of_a_run_is_saved(tmp_path, every, steps):
    trainer, _ = run(tmp_path, every=eg.Every(steps=every), max_steps=steps)
    newest = find_checkpoints(tmp_path)[-1]
    assert newest.name == f"step_{steps:08d}"
    other = eg.Trainer(Linear(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(1.0))
    other.init_on_batch(X, Y)
    other.restore(newest)
    assert_same_bits(host(other.state), host(trainer.state))


def test_the_best_alone_does_not_take_in_the_end(tmp_path):
    trainer = eg.Trainer(Linear(), loss=eg.losses.CrossEntropy(), optimizer=optax.adam(1.0))
    best = ModelCheckpoint(tmp_path, "val_loss", save_last=False)
    trainer.fit(X, Y, epochs=9, batch_size=8, validation_split=0.2, verbose=0, callbacks=[best])
    values = trainer.history.history["val_loss"]
    assert [path.name for path in find_checkpoints(tmp_path)] == [f"step_{STEPS * (np.argmin(values) + 1):08d}"]


@pytest.mark.parametrize("verbose", [0, 2])
def test_a_resumed_run_says_where_it_goes_on(tmp_path, caplog, capsys, verbose):
    caplog.set_level(logging.INFO, "elegy")

    def said():
        logged = [record.getMessage() for record in caplog.records if record.name == "elegy"]
        lines = [line for line in logged if line.startswith("resumed")]
        caplog.clear()
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed")]
        assert printed == (lines if verbose else [])
        return lines

    run(tmp_path, max_steps=6, epochs=2, verbose=verbose)
    assert said() == []
    run(tmp_path, epochs=2, verbose=verbose)
    where = re.escape(str(tmp_path / "step_00000006"))
    [line] = said()
    assert re.fullmatch(f"resumed from {where} at step 6, in epoch 2", line)
    run(tmp_path, epochs=2, verbose=verbose)
    [line] = said()
    assert re.search("step_00000008 at step 8, where the run ended: nothing is left to train$", line)
