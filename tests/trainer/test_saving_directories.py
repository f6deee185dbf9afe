"""Two trainers do not save to one directory, and a directory that cannot be written to is named before a step runs."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.callbacks import Callback, LambdaCallback, ModelCheckpoint
from elegy.checkpoint import find_checkpoints
from elegy.checkpoint.locks import LOCK_FILE, reserved
from elegy.errors import CheckpointError


class NeverInit(High):
    """A module whose state cannot be made."""

    def init(self, key, inputs):
        raise AssertionError("something was computed")


def fit(directory, *callbacks, module=None, **options):
    trainer = eg.Trainer(module or High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    callbacks = [ModelCheckpoint(directory), *callbacks]
    trainer.fit(*regression(), batch_size=8, callbacks=callbacks, verbose=0, **options)
    return trainer


def test_a_directory_to_which_a_trainer_saves_is_refused_to_another(tmp_path):
    found = []

    class Try(Callback):
        def on_epoch_end(self, event):
            with pytest.raises(CheckpointError, match=f"another trainer is saving to {tmp_path}") as error:
                fit(tmp_path, module=NeverInit(), resume="auto")
            found.append(error)

    fit(tmp_path, Try(), epochs=2)
    assert len(found) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000006"]
    assert fit(tmp_path, resume="auto", epochs=3).epoch == 3


SAVES = """
import os, sys, time, elegy as eg
from tests.boring_modules import High, regression

class Hang(eg.Callback):
    def on_epoch_end(self, event):
        worker = os.fork()  # as a DataLoader does
        if worker == 0:
            print(os.getpid(), flush=True)  # the worker says it, after what Python does in a forked process
            os.close(1)
            os.close(2)
            time.sleep(600)
        time.sleep(600)

import optax
saver = eg.callbacks.ModelCheckpoint("run", every=eg.Every(steps=1), async_save=False)
trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), callbacks=[Hang(), saver])
trainer.fit(*regression(), batch_size=8, verbose=0)
"""


def test_another_process_is_refused_and_a_killed_run_with_a_worker_that_stays_can_be_resumed(start, tmp_path):
    process = start(1, SAVES)
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(CheckpointError, match="another trainer is saving to"):
            fit(tmp_path / "run", module=NeverInit())
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        os.kill(worker, 0)  # it is still there
        assert (tmp_path / "run" / LOCK_FILE).exists()
        resumed = fit(tmp_path / "run", resume="auto", epochs=2)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert resumed.epoch == 2
    assert os.listdir(tmp_path / "run") == ["step_00000006"]


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/elegy", "/dev/null"])
def test_a_place_that_cannot_be_written_to_is_named_before_anything_is_computed(tmp_path, place):
    (tmp_path / "file").touch()
    directory = tmp_path / place
    with pytest.raises(CheckpointError, match=f"checkpoints cannot be saved to {directory}: .*{directory}"):
        fit(directory, module=NeverInit())
    assert os.listdir(tmp_path) == ["file"]


def test_a_directory_in_which_no_file_can_be_made_is_named_before_anything_is_computed():
    directory = Path("/proc/self/fdinfo")  # nobody may write there, root included
    with pytest.raises(CheckpointError, match=f"checkpoints cannot be saved to {directory}: .*{LOCK_FILE}"):
        fit(directory, module=NeverInit())


def test_a_run_that_fails_before_it_begins_leaves_no_lock(tmp_path):
    with pytest.raises(AssertionError, match="something was computed"):
        fit(tmp_path, module=NeverInit())
    assert os.listdir(tmp_path) == []


def test_a_run_that_fails_does_not_stay_locked(tmp_path):
    def fail(event):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(tmp_path, LambdaCallback(on_epoch_end=fail))
    assert os.listdir(tmp_path) == []
    fit(tmp_path)
    assert len(find_checkpoints(tmp_path)) == 1


def test_one_of_many_that_begin_at_once_has_the_directory(tmp_path):
    """Each holder deletes its lock file, so that others lock one that is not there any more."""
    inside, most, turns, refused = 0, 0, [], set()
    guard = threading.Lock()

    def work():
        nonlocal inside, most
        while len(turns) < 300:
            try:
                with reserved(tmp_path):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    turns.append(0)
                    with guard:
                        inside -= 1
            except CheckpointError as error:
                refused.add(str(error)[:15])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(turns) >= 300) == (1, True)
    assert refused <= {"another trainer"}
    assert os.listdir(tmp_path) == []
