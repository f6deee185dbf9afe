"""A run that is cut inside of an epoch, or crashes after a checkpoint, leaves the records of the whole one."""

from __future__ import annotations

import json
import os
import shutil

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from boring_modules import assert_same_bits, host
from some_cases import some

import elegy as eg
from elegy.callbacks import Callback, CSVLogger, EarlyStopping, ModelCheckpoint, TerminateOnNaN
from elegy.checkpoint import find_checkpoints
from elegy.data import epoch_permutation
from elegy.errors import CheckpointError

rng = np.random.default_rng(3)
X = rng.normal(size=(100, 6)).astype(np.float32)
Y = rng.integers(0, 3, 100)  # noise: the validation soon gets worse


def make(optimizer=None, **kwargs):
    return eg.Trainer(
        nn.Dense(3), eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optimizer or optax.adam(0.01), **kwargs
    )


def fit(callbacks, trainer=None, inputs=X, **kwargs):
    trainer = trainer or make()
    trainer.fit(inputs, Y, verbose=0, callbacks=callbacks, **{"resume": "auto", "batch_size": 25, **kwargs})
    return trainer


def names(directory):
    return [path.name for path in find_checkpoints(directory)]


class Crash(Callback):
    """Raises at the end of an epoch, before what runs last."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, event):
        if event.epoch == self.epoch:
            raise ZeroDivisionError


def cut_run(directory, every, csv_every, **kwargs):
    stopping = EarlyStopping("val_loss", patience=3)
    log = CSVLogger(directory / "log.csv", every=csv_every)
    saving = ModelCheckpoint(directory / "saved", every=every)
    options = {"batch_size": 10, "epochs": 40, "validation_split": 0.2}
    return fit([stopping, log, saving], make(optax.adam(0.05)), **options, **kwargs), stopping


@pytest.mark.parametrize(
    ("cut", "every", "csv_every"),
    some(
        [
            (11, eg.Every(steps=4), eg.Every(epochs=1)),
            (5, eg.Every(steps=4), eg.Every(epochs=1)),
            (3, eg.Every(epochs=1), eg.Every(steps=2)),
            (13, eg.Every(steps=1), eg.Every(steps=2)),
        ],
        1,
    ),
)
def test_a_run_in_pieces_leaves_what_the_whole_one_leaves(tmp_path, cut, every, csv_every):
    whole, stopped = cut_run(tmp_path / "whole", every, csv_every)
    assert stopped.stopped_epoch == whole.epoch - 1 < 39
    for steps in range(cut, 400, cut):
        pieces, remembered = cut_run(tmp_path / "pieces", every, csv_every, max_steps=steps)
        if pieces.step < steps:
            break
    assert (pieces.step, pieces.epoch, pieces.history.history) == (whole.step, whole.epoch, whole.history.history)
    assert pieces.history.epoch == whole.history.epoch
    assert_same_bits(host(pieces.state), host(whole.state))
    for name in ("best", "best_epoch", "wait", "stopped_epoch"):
        assert getattr(remembered, name) == getattr(stopped, name)
    assert (tmp_path / "pieces/log.csv").read_text() == (tmp_path / "whole/log.csv").read_text()


class Halve(Callback):
    """Changes the state and adds a value in both hooks."""

    def on_epoch_end(self, event):
        state = event.trainer.state
        event.trainer.state = state.set_params(jax.tree.map(lambda leaf: leaf * 0.5, state.get_params()))
        event.log("halved", event.epoch)

    def on_evaluation_end(self, event):
        event.log("looked", event.step)


class Saves(Callback):
    """Saves in hooks before the callbacks that read the logs."""

    def __init__(self, directory):
        self.directory, self.paths = directory, []

    def on_epoch_end(self, event):
        self.paths.append(self.directory / f"{len(self.paths)}")
        event.trainer.save(self.paths[-1])

    on_evaluation_end = on_epoch_end


class Notes(Callback):
    """Logs a text and a histogram at the end of an epoch, and after evaluations inside of one."""

    def __init__(self, name):
        self.name = name

    def on_epoch_end(self, event):
        event.log_text(self.name, f"step {event.step}")
        event.log_histogram(self.name, np.arange(3.0))

    on_evaluation_end = on_epoch_end


def recorded(directory):
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    return (directory / "log.csv").read_text(), [line for line in lines if line["type"] != "config"]


def test_a_checkpoint_saved_in_a_hook_goes_on_with_the_callbacks_after_it(tmp_path):
    def run(directory, resume=None):
        directory.mkdir(exist_ok=True)
        stopping, saves = EarlyStopping("val_loss", patience=4, restore_best_weights=True), Saves(directory / "saved")
        logs = [
            CSVLogger(directory / "log.csv"),
            eg.loggers.JSONLines(directory / "log.jsonl", every=eg.Every(steps=4)),
        ]
        options = {"validation_split": 0.2, "validation_freq": eg.Every(steps=3), "batch_size": 20, "epochs": 3}
        trainer = fit([Halve(), Notes("before"), saves, Notes("after"), *logs, stopping], resume=resume, **options)
        return trainer, stopping, saves.paths

    whole, stopped, paths = run(tmp_path / "whole")
    assert len(paths) == 6  # after steps 3, 4, 6, 8, 9, 12
    expected = recorded(tmp_path / "whole")
    for k, path in enumerate(paths):
        shutil.copytree(tmp_path / "whole", tmp_path / f"{k}")
        resumed, remembered, _ = run(tmp_path / f"{k}", resume=path)
        assert resumed.history.history == whole.history.history
        assert resumed.history.evaluations == whole.history.evaluations
        assert_same_bits(host(resumed.state), host(whole.state))
        for name in ("best", "best_step", "wait"):
            assert getattr(remembered, name) == getattr(stopped, name)
        assert recorded(tmp_path / f"{k}") == expected


def test_the_best_state_is_the_validated_one_also_if_a_callback_changed_the_last_one(tmp_path):
    def run(*saving, resume=None):
        stopping = EarlyStopping("val_loss", patience=5, restore_best_weights=True)
        options = {"validation_split": 0.2, "batch_size": 20, "epochs": 3}
        return fit([Halve(), stopping, *saving], make(optax.sgd(3.0)), resume=resume, **options), stopping

    whole, stopped = run(ModelCheckpoint(tmp_path, save_top_k=-1))
    assert stopped.best_step < whole.step
    for path in find_checkpoints(tmp_path)[:-1]:
        resumed, remembered = run(resume=path)
        assert remembered.best_step == stopped.best_step
        assert_same_bits(host(resumed.state), host(whole.state))


def test_an_emergency_checkpoint_of_a_failed_hook_loses_no_epoch(tmp_path):
    def callbacks(directory, *others):
        stopping = EarlyStopping("val_loss", patience=9)
        saving = ModelCheckpoint(directory, every=eg.Every(epochs=9), save_on_exception=True)
        return [CSVLogger(directory / "log.csv"), stopping, *others, saving]

    options = {"epochs": 4, "validation_split": 0.2}
    whole = fit(callbacks(tmp_path / "whole"), **options)
    for epoch in (0, 2):
        with pytest.raises(ZeroDivisionError):
            fit(callbacks(tmp_path / "cut", Crash(epoch)), **options)
    resumed = fit(callbacks(tmp_path / "cut"), **options)
    assert resumed.history.history == whole.history.history
    assert resumed.history.epoch == [0, 1, 2, 3]
    assert_same_bits(host(resumed.state), host(whole.state))
    assert (tmp_path / "cut/log.csv").read_text() == (tmp_path / "whole/log.csv").read_text()


def test_an_emergency_checkpoint_is_saved_also_if_a_log_cannot_be_read(tmp_path):
    class Bad(Callback):
        def on_epoch_end(self, event):
            event.log("bad", lambda: 1 / 0)

    saving = ModelCheckpoint(tmp_path, every=eg.Every(epochs=9), save_on_exception=True)
    with pytest.raises(ZeroDivisionError) as caught:
        fit([Bad(), EarlyStopping("loss", patience=9), saving], epochs=2)
    assert "EarlyStopping.on_epoch_end" in caught.value.__notes__[0]
    assert names(tmp_path) == ["step_00000004"]


def test_a_checkpoint_of_the_last_step_of_an_epoch_makes_no_second_row(tmp_path):
    for _ in range(3):
        trainer = fit([CSVLogger(tmp_path / "log.csv"), ModelCheckpoint(tmp_path, every=eg.Every(steps=4))], epochs=2)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows] == [["epoch", "step"], ["0", "4"], ["1", "8"]]
    assert trainer.step == 8


def test_a_crash_between_checkpoint_and_end_of_epoch_makes_no_second_row(tmp_path):
    def callbacks(directory):
        log = CSVLogger(directory / "log.csv", every=eg.Every(steps=1))
        return [log, ModelCheckpoint(directory, every=eg.Every(steps=4))]

    options = {"epochs": 3, "validation_split": 0.2, "batch_size": 10}
    fit(callbacks(tmp_path / "whole"), **options)
    for epoch in (1, 2):
        with pytest.raises(ZeroDivisionError):
            fit([*callbacks(tmp_path / "cut"), Crash(epoch)], **options)
    fit(callbacks(tmp_path / "cut"), **options)
    assert (tmp_path / "cut/log.csv").read_text() == (tmp_path / "whole/log.csv").read_text()


def test_rows_past_a_checkpoint_go_when_the_run_goes_back_to_it(tmp_path):
    class Poison(Callback):
        done = False

        def on_epoch_end(self, event):
            if event.epoch == 2 and not self.done:
                self.done = True
                state = event.trainer.state
                event.trainer.state = state.set_params(jax.tree.map(lambda leaf: leaf * np.nan, state.get_params()))

    log = CSVLogger(tmp_path / "log.csv")
    saving = ModelCheckpoint(tmp_path / "saved", every=eg.Every(epochs=2))
    trainer = fit([log, Poison(), saving], make(nonfinite="rollback"), epochs=4)
    rows = [row.split(",")[:2] for row in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert rows == [[str(epoch), str(4 * (epoch + 1))] for epoch in range(4)]
    assert trainer.history.epoch == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:training is stopped")
@pytest.mark.parametrize("watch", some([eg.Every(steps=50), eg.Every(steps=1)], 1), ids=["late", "soon"])
@pytest.mark.parametrize("every", [eg.Every(epochs=1), eg.Every(steps=2)], ids=["epochs", "steps"])
def test_a_run_that_nan_ended_leaves_its_last_good_checkpoint(tmp_path, every, watch):
    def optimizer():
        return optax.sgd(lambda step: jax.numpy.where(step < 4, 0.01, np.nan))  # the fifth step spoils the parameters

    for _ in range(3):
        watching, saving = TerminateOnNaN(watch), ModelCheckpoint(tmp_path, every=every)
        with pytest.warns(RuntimeWarning, match="'loss' is nan (at|since) step 6 of epoch 2"):
            trainer = fit([watching, saving], make(optimizer()), epochs=20)
        assert names(tmp_path) == ["step_00000004"]
        assert trainer.step <= 8
    other = make(optimizer())
    other.init_on_batch(X, Y)
    other.restore(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(host(other.state.get_params())))


@pytest.mark.filterwarnings("ignore:training is stopped")
def test_a_nan_that_another_callback_was_first_to_see_is_not_saved(tmp_path):
    bad = X.copy()
    bad[5] = np.nan
    (place,) = np.flatnonzero(epoch_permutation(42, 0, len(X)) == 5)
    for _ in range(3):
        stopping = EarlyStopping("loss")
        with pytest.warns(RuntimeWarning, match=f"'loss' is nan since step {place // 25 + 1}"):
            trainer = fit([stopping, TerminateOnNaN(), ModelCheckpoint(tmp_path)], inputs=bad, epochs=20)
        assert (trainer.step, names(tmp_path)) == (4, [])


def test_skipped_steps_do_not_prevent_saves(tmp_path):
    bad = X.copy()
    bad[5] = np.nan
    with pytest.warns(RuntimeWarning, match="1 step of this run was not finite"):
        fit([TerminateOnNaN(), ModelCheckpoint(tmp_path)], make(nonfinite="skip"), inputs=bad, epochs=20)
    assert names(tmp_path) == ["step_00000004"]


def test_a_refused_directory_is_not_written_into(tmp_path):
    fit([ModelCheckpoint(tmp_path, save_top_k=-1)], epochs=3)

    def contents():
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}

    before = contents()
    other = fit([], epochs=1, resume=None)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="has checkpoints of another run"):
            fit([ModelCheckpoint(tmp_path, save_on_exception=True)], other, epochs=2, resume=None)
    assert contents() == before


def test_two_savers_of_one_directory_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    first = ModelCheckpoint(tmp_path / "run", "loss")
    for second in ("run", "link", os.path.join("other", "..", "run")):
        with pytest.raises(ValueError, match="two ModelCheckpoints save to"):
            fit([first, ModelCheckpoint(second, "accuracy")], epochs=1, resume=None)
    assert not (tmp_path / "run").exists()
    fit([first, ModelCheckpoint("other", "accuracy")], epochs=1, resume=None)


@pytest.mark.parametrize("async_save", [True, False])
def test_a_checkpoint_that_cannot_be_pruned_does_not_end_the_run(tmp_path, async_save):
    class Finder(Callback):
        def on_epoch_begin(self, event):
            for path in find_checkpoints(tmp_path)[:1]:
                (path / ".DS_Store").touch()

    saving = ModelCheckpoint(tmp_path, async_save=async_save)
    with pytest.warns(UserWarning, match="an old checkpoint could not be deleted: .*DS_Store"):
        trainer = fit([Finder(), saving], epochs=4, resume=None)
    assert trainer.epoch == 4
    assert names(tmp_path)[-1] == "step_00000016" == saving.last_path.name
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("killed", [False, True])
def test_a_resumed_run_appends_no_row_twice(tmp_path, killed):
    """The file has an earlier run; the run crashes behind its checkpoint, or is killed inside of a row behind it."""

    def callbacks(path):
        saving = ModelCheckpoint(path.with_suffix(".saved"), every=eg.Every(steps=3), save_on_exception=False)
        return [CSVLogger(path, append=True, every=eg.Every(steps=1)), saving]

    cut, whole = tmp_path / "cut.csv", tmp_path / "whole.csv"
    for path in (cut, whole):
        fit(callbacks(path)[:1], epochs=1, resume=None)
    fit(callbacks(whole), epochs=2, batch_size=20)
    with pytest.raises(ZeroDivisionError):
        fit([*callbacks(cut), Crash(1)], epochs=2, batch_size=20)
    if killed:  # while it wrote the line of the step after the checkpoint
        text = cut.read_text()
        cut.write_text(text[: text.index("\n1,10,") + len("\n1,10,0.")])
    fit(callbacks(cut), epochs=2, batch_size=20)
    steps = [int(line.split(",")[1]) for line in cut.read_text().splitlines()[1:]]
    assert steps == [1, 2, 3, 4, *range(1, 11)]
    assert cut.read_text() == whole.read_text()


def test_a_text_of_an_evaluation_is_there_once_after_a_resume(tmp_path):
    class Tells(Callback):
        def on_test_end(self, event):
            event.log_text("tells", f"step {event.step}")

    def run(directory, resume=None):
        directory.mkdir(exist_ok=True)
        saving = ModelCheckpoint(directory / "saved", save_top_k=-1, every=eg.Every(steps=1), monitor="val_loss")
        log = eg.loggers.JSONLines(directory / "log.jsonl", every=eg.Every(steps=1))
        options = {"validation_split": 0.2, "validation_freq": eg.Every(steps=3), "batch_size": 20, "epochs": 2}
        fit([Tells(), log, saving], resume=resume, **options)
        lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
        return [(line["type"], line["step"]) for line in lines if line["type"] not in ("config", "checkpoint")]

    whole = run(tmp_path / "whole")
    assert whole.count(("text", 3)) == 1
    for path in find_checkpoints(tmp_path / "whole/saved"):
        where = tmp_path / path.name
        shutil.copytree(tmp_path / "whole", where)
        for later in find_checkpoints(where / "saved"):
            if later.name > path.name:
                shutil.rmtree(later)
        assert run(where, resume="auto") == whole
