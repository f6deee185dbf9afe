"""Runs whose checkpoints are at addresses: what works in a directory works there, with the same bits."""

from __future__ import annotations

import os
import re
import tempfile

import numpy as np
import optax
import pytest
from boring_modules import High, host, regression
from fsspec.implementations.memory import MemoryFileSystem

import elegy as eg
from elegy.callbacks import Callback, ModelCheckpoint
from elegy.checkpoint import find_checkpoints, is_intact
from elegy.errors import CheckpointError

SIZE, BATCH, STEPS = 22, 4, 6
RUN = "memory://bucket/run"


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    assert os.listdir(tmp_path / "tmp") == []


def make(**kwargs):
    return eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05), **kwargs)


def fit(trainer, **kwargs):
    return trainer.fit(*regression(SIZE), batch_size=BATCH, verbose=0, **{"epochs": 3, **kwargs})


def assert_same(one, other):
    assert (one.step, one.epoch) == (other.step, other.epoch)
    assert one.history.history == other.history.history
    for a, b in zip(host(one.state), host(other.state), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


class Fails(Callback):
    batch_hooks_read = "state"

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, event):
        if event.step == self.step:
            raise OSError("the disk is gone")


def counted(monkeypatch):
    """How often each manifest was downloaded."""
    counts: dict[str, int] = {}
    real = MemoryFileSystem.get_file

    def get_file(files, remote, local, **kwargs):
        if remote.endswith("manifest.json"):
            counts[remote] = counts.get(remote, 0) + 1
        return real(files, remote, local, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    return counts


@pytest.mark.parametrize(
    ("how", "stop"), [("auto", STEPS), ("auto", STEPS + 3), ("directory", STEPS + 3), ("checkpoint", STEPS + 3)]
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(monkeypatch, how, stop):
    whole, cut, resumed = make(), make(), make()
    fit(whole)
    checkpoint = ModelCheckpoint(RUN, every=eg.Every(steps=3), save_top_k=2)
    fit(cut, max_steps=stop, callbacks=[checkpoint])
    again = ModelCheckpoint(RUN, every=eg.Every(steps=3), save_top_k=2)
    downloads = counted(monkeypatch)
    fit(resumed, callbacks=[again], resume={"auto": "auto", "directory": RUN, "checkpoint": checkpoint.last_path}[how])
    assert_same(resumed, whole)
    assert downloads == {f"/bucket/run/step_{stop:08d}/manifest.json": 1}
    assert [path.name for path in find_checkpoints(RUN)] == ["step_00000015", "step_00000018"]


@pytest.mark.parametrize(
    "options",
    [
        {"save_top_k": 2},
        {"save_top_k": -1, "async_save": False},
        {"monitor": "val_loss"},
        {"monitor": "val_loss", "async_save": False},
    ],
)
def test_retention_is_that_of_a_directory(tmp_path, options):
    """Every three steps, and where the validation is best: the end of an epoch is saved twice."""
    options = {"every": eg.Every(steps=3), **options}
    here, there = ModelCheckpoint(tmp_path / "run", **options), ModelCheckpoint(RUN, **options)
    for checkpoint in (here, there):
        fit(make(), callbacks=[checkpoint], validation_split=0.2, epochs=2)
    assert [path.name for path in find_checkpoints(RUN)] == sorted(os.listdir(tmp_path / "run"))
    assert all(map(is_intact, find_checkpoints(RUN)))
    assert [path.name for path in there.paths] == [path.name for path in here.paths]
    assert there.last_path == there.directory / here.last_path.name
    assert (there.best_path and there.best_path.name) == (here.best_path and here.best_path.name)
    trainer = make()
    trainer.restore(there.best_path or there.last_path)


def test_saved_and_restored_by_hand():
    trainer, later, now = make(), make(), make()
    fit(trainer, max_steps=9)
    trainer.save("memory://x/one")
    trainer.save("memory://x/one")
    later.restore("memory://x/one")  # before there is a state
    fit(now, max_steps=1)
    now.restore("memory://x/one")
    later.init_on_batch(regression(SIZE)[0])
    assert_same(now, trainer)
    assert_same(later, trainer)


def test_weights():
    trainer, whole, alone = make(), make(), make()
    fit(trainer)
    trainer.save(f"{RUN}/step_00000018")
    trainer.save_weights("memory://x/weights")
    for other, source in ((whole, RUN), (alone, "memory://x/weights")):
        other.init_on_batch(regression(SIZE)[0])
        other.load_weights(source)
        np.testing.assert_array_equal(other.predict(regression(SIZE)[0]), trainer.predict(regression(SIZE)[0]))
        assert other.step == 0
    with pytest.raises(CheckpointError, match="mounted file systems"):
        trainer.save_weights("memory://x/weights.safetensors")
    with pytest.raises(CheckpointError, match="mounted file systems"):
        trainer.load_weights("memory://x/weights.safetensors")


def test_the_newest_intact_one_is_taken():
    fit(make(), callbacks=[ModelCheckpoint(RUN, save_top_k=-1)])
    file = MemoryFileSystem.store["/bucket/run/step_00000018/metadata.json"]
    file.getbuffer()[10] ^= 1
    resumed, whole = make(), make()
    with pytest.warns(UserWarning, match=r"using memory://bucket/run/step_00000012 instead(.|\n)*bytes have"):
        fit(resumed, callbacks=[ModelCheckpoint(RUN, save_top_k=-1)], resume="auto")
    fit(whole)
    assert_same(resumed, whole)
    assert all(map(is_intact, find_checkpoints(RUN)))


def test_a_failed_run_is_saved_where_it_stopped():
    trainer, whole, resumed = make(), make(), make()
    with pytest.raises(OSError, match="the disk is gone"):
        fit(trainer, callbacks=[ModelCheckpoint(RUN, save_on_exception=True), Fails(8)])
    assert [path.name for path in find_checkpoints(RUN)] == ["step_00000008"]
    fit(whole, steps_per_execution=1)  # as the failed run, whose callback may read the state after each step
    fit(resumed, callbacks=[ModelCheckpoint(RUN)], resume="auto")
    assert_same(resumed, whole)


class SpoilsOnce(Callback):
    batch_hooks_read = "state"

    def __init__(self):
        self.done = False

    def on_train_batch_end(self, event):
        if event.step == 9 and not self.done:
            self.done = True
            params = {name: leaf * np.nan for name, leaf in event.trainer.state.params.items()}
            event.trainer.state = event.trainer.state.replace(params=params)


def test_going_back(tmp_path):
    trainers = []
    for directory in (tmp_path / "run", RUN):
        trainer = make(nonfinite="rollback")
        fit(trainer, callbacks=[ModelCheckpoint(directory, every=eg.Every(steps=2)), SpoilsOnce()])
        assert trainer.step == 3 * STEPS
        trainers.append(trainer)
    assert_same(*trainers)


@pytest.mark.parametrize("async_save", [False, True])
def test_an_upload_that_fails_ends_the_run_and_leaves_the_older(monkeypatch, async_save):
    real = MemoryFileSystem.put_file

    def put_file(files, local, remote, **kwargs):
        if "step_00000012/arrays/manifest" in remote:
            raise ConnectionError("no network")
        return real(files, local, remote, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", put_file)
        with pytest.raises(CheckpointError, match=r"step_00000012: .*could not be written: no network"):
            fit(make(), callbacks=[ModelCheckpoint(RUN, async_save=async_save)])
    assert [path.name for path in find_checkpoints(RUN)] == ["step_00000006"]
    whole, resumed = make(), make()
    fit(whole)
    fit(resumed, callbacks=[ModelCheckpoint(RUN)], resume="auto")
    assert_same(resumed, whole)


def test_leftovers_are_removed_when_a_run_begins():
    files = MemoryFileSystem()
    for name in ("step_00000003/metadata.json", "step_00000002.old-1f/arrays/d", "notes.txt"):
        files.pipe_file(f"/bucket/run/{name}", b"left")
    fit(make(), callbacks=[ModelCheckpoint(RUN)], resume="auto")
    assert {name.split("/")[3] for name in files.store} == {"notes.txt", "step_00000018"}


def test_the_directory_of_another_run_is_refused():
    fit(make(), callbacks=[ModelCheckpoint(RUN)])
    other = make(seed=1)
    with pytest.raises(CheckpointError, match=rf"begins at step 0, but {RUN} has .*step_00000018"):
        fit(other, callbacks=[ModelCheckpoint(RUN)])
    with pytest.raises(CheckpointError, match="seed was 42, now it is 1"):
        fit(other, callbacks=[ModelCheckpoint(RUN)], resume="auto")
    assert other.step == 0


@pytest.mark.parametrize("resume", ["xyz://bucket/run", "memory://nothing"])
def test_what_cannot_be_resumed_is_said_before_anything_is_computed(resume):
    class Never(High):
        def init(self, key, inputs):
            raise AssertionError("computed")

    trainer = eg.Trainer(Never(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05))
    with pytest.raises(CheckpointError, match=re.escape(resume)):
        fit(trainer, resume=resume)
