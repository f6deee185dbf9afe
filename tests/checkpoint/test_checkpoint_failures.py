"""Saving that cannot succeed, or dies half-way: the old checkpoint or the new one, never neither."""

import os
import random
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.callbacks import ModelCheckpoint
from elegy.checkpoint import (
    find_checkpoints,
    is_intact,
    load,
    load_safetensors,
    naming,
    newest_intact,
    remove,
    remove_leftovers,
    save_pickle,
    save_safetensors,
    store,
)
from elegy.checkpoint.store import restore, save
from elegy.errors import CheckpointError

# ELEGY_KILLS=100 for the long run.
KILLS = int(os.environ.get("ELEGY_KILLS", "4"))


def tree(step):
    return {"w": np.full(1000, step, np.int32)}


def test_replacing_a_checkpoint(tmp_path):
    for step in (1, 2):
        save(tmp_path / "last", tree(step), {"step": step})
    assert os.listdir(tmp_path) == ["last"]
    assert restore(tmp_path / "last", tree(0))[1] == {"step": 2}


def test_a_file_in_place_of_the_parent_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"file/ckpt: the checkpoint could not be written"):
        save(tmp_path / "file" / "ckpt", tree(1), {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_or_a_link_at_the_path(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(CheckpointError, match=f"{name}: this is a file or a link"):
            save(tmp_path / name, tree(1), {})
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_directory_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"other things than a checkpoint \(thesis\)"):
        save(tmp_path / "home", tree(1), {})
    with pytest.raises(CheckpointError, match="thesis"):
        remove(tmp_path / "home")
    assert (tmp_path / "home" / "thesis").is_dir()


def in_the_way(path, what):
    """Puts something that is no intact checkpoint where one is to be written."""
    if what == "note":
        save(path, tree(1), {"step": 12})
        (path / "note.txt").write_text("mine")
    elif what == "file":
        path.write_text("mine")
    else:
        path.symlink_to({"dangling link": path.parent / "nowhere", "loop": path, "directory": path.parent}[what])


@pytest.mark.parametrize("what", ["note", "file", "dangling link", "loop", "directory"])
def test_what_is_in_the_way_of_a_step_is_moved_aside(tmp_path, what):
    path = tmp_path / "step_00000012"
    in_the_way(path, what)
    with pytest.warns(UserWarning, match=r"step_00000012: .* moved to .*step_00000012\.damaged-"):
        save(path, tree(2), {"step": 12})
    (aside,) = tmp_path.glob("step_00000012.damaged-*")
    assert what != "note" or ((aside / "note.txt").read_text() == "mine" and (aside / "arrays").is_dir())
    assert what != "file" or aside.read_text() == "mine"
    assert aside.is_symlink() == (what not in ("note", "file"))
    assert restore(path, tree(0))[0]["w"][0] == 2
    assert find_checkpoints(tmp_path) == [path]
    assert remove_leftovers(tmp_path) == []
    save(path, tree(3), {"step": 12})
    assert set(tmp_path.iterdir()) == {path, aside}


@pytest.mark.parametrize("what", ["note", "file", "dangling link", "loop"])
def test_a_run_gets_over_what_is_in_its_way(tmp_path, what):
    def fit(epochs):
        trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        callbacks = [ModelCheckpoint(tmp_path, save_top_k=-1)]
        trainer.fit(*regression(8), batch_size=2, epochs=epochs, verbose=0, resume="auto", callbacks=callbacks)
        return trainer

    fit(3)
    newest = tmp_path / "step_00000012"
    if what == "note":
        (newest / "note.txt").write_text("mine")
    else:
        shutil.rmtree(newest)
        in_the_way(newest, what)
    with warnings.catch_warnings(record=True) as caught:  # the note is damage, which is told first
        warnings.simplefilter("always")
        assert fit(5).step == 20
    assert any("It was moved to" in str(warning.message) for warning in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(5).step == 20
    steps = [naming.checkpoint_step(path) for path in find_checkpoints(tmp_path) if is_intact(path)]
    assert steps == [4, 8, 12, 16, 20]


def test_what_is_in_the_way_stays_where_the_save_fails(tmp_path, monkeypatch):
    path = tmp_path / "step_00000012"
    in_the_way(path, "note")
    monkeypatch.setattr(store, "write_flushed", lambda *_args: 1 / 0)
    with pytest.raises(CheckpointError, match="could not be written"):
        save(path, tree(2), {"step": 12})
    assert os.listdir(tmp_path) == ["step_00000012"]
    assert (path / "note.txt").exists()


def test_a_name_of_another_step_or_a_link_to_a_checkpoint_is_not_moved(tmp_path):
    in_the_way(tmp_path / "step_00000012", "note")
    with pytest.raises(CheckpointError, match=r"other things than a checkpoint \(note.txt\)"):
        save(tmp_path / "step_00000012", tree(2), {"step": 11})
    save(tmp_path / "best", tree(1), {"step": 13})
    (tmp_path / "step_00000013").symlink_to(tmp_path / "best")
    with pytest.raises(CheckpointError, match="this is a file or a link"):
        save(tmp_path / "step_00000013", tree(2), {"step": 13})
    assert sorted(os.listdir(tmp_path)) == ["best", "step_00000012", "step_00000013"]


@pytest.mark.parametrize("call", [lambda path: save(path, tree(1), {}), restore, find_checkpoints, is_intact])
def test_a_backslash_in_a_path_is_refused(tmp_path, call):
    for name in ("a\\b", "a\\b/step_00000001") if os.sep == "/" else ():  # elsewhere it separates directories
        with pytest.raises(CheckpointError, match="must not contain a backslash"):
            call(tmp_path / name)
        assert os.listdir(tmp_path) == []


def test_an_empty_or_broken_checkpoint_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", tree(1), {})
    (tmp_path / "empty" / "manifest.json").unlink()
    save(tmp_path / "empty", tree(2), {})
    assert restore(tmp_path / "empty", tree(0))[0]["w"][0] == 2


@pytest.mark.parametrize("address", ["gs://bucket/file", Path("gs://bucket/file"), "file:///file"])
@pytest.mark.parametrize(
    "call",
    [
        lambda path: save_safetensors(path, tree(1)),
        load_safetensors,
        lambda path: save_pickle(path, 1),
        lambda path: load(path, allow_code=True),
    ],
)
def test_single_files_do_not_go_to_addresses(address, call):
    with pytest.raises(CheckpointError, match="mounted file systems"):
        call(address)


def test_a_read_only_directory(run_devices):
    """As a user whom the permissions of a directory bind, which they do not bind the administrator."""
    out = run_devices(
        1,
        """
        import os, shutil, tempfile
        from elegy.checkpoint import is_intact
        from elegy.errors import CheckpointError
        folder = tempfile.mkdtemp()
        try:
            save(f"{folder}/run/step_00000001", {"w": np.arange(10)}, {"step": 1})
            os.chmod(folder, 0o755)
            os.chmod(f"{folder}/run", 0o555)
            if os.geteuid() == 0:
                os.seteuid(65534)
            for path in (f"{folder}/run/step_00000001", f"{folder}/run/step_00000002"):
                try:
                    save(path, {"w": np.arange(20)}, {"step": 2})
                except CheckpointError as error:
                    assert path in str(error) and "Permission denied" in str(error), error
                    print("refused")
            assert os.listdir(f"{folder}/run") == ["step_00000001"]
            assert is_intact(f"{folder}/run/step_00000001")
            assert restore(f"{folder}/run", None)[1] == {"step": 1}
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            os.chmod(f"{folder}/run", 0o755)
            shutil.rmtree(folder)
        """,
    )
    assert out.split() == ["refused"] * 2


def test_a_full_disk(tmp_path, run_devices):
    """Every file beyond a size fails to be written, as on a full disk, while Orbax writes or while we do."""
    out = run_devices(
        1,
        """
        import resource, signal, os
        from elegy.checkpoint import is_intact
        from elegy.errors import CheckpointError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        save("run/step_00000001", {"w": np.arange(1000)}, {"step": 1})
        for limit, arrays in ((100_000, {"w": np.arange(1_000_000)}), (4096, {})):
            metadata = {"long": "x" * 10_000}
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            for path in ("run/step_00000001", "run/step_00000002"):
                try:
                    save(path, arrays, metadata)
                except CheckpointError as error:
                    assert path in str(error), error
                    print("refused", limit)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert os.listdir("run") == ["step_00000001"], os.listdir("run")
        assert is_intact("run/step_00000001")
        assert restore("run/step_00000001", None)[1] == {"step": 1}
        """,
    )
    assert out.split() == ["refused", "100000"] * 2 + ["refused", "4096"] * 2


@pytest.mark.parametrize("stage", ["write_arrays", "write_flushed", "write_manifest"])
def test_an_error_at_any_stage_leaves_the_old_one(tmp_path, monkeypatch, stage):
    save(tmp_path / "last", tree(1), {})

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, stage, fail)
    with pytest.raises(CheckpointError, match=r"last: the checkpoint could not be written: .*No space left"):
        save(tmp_path / "last", tree(2), {})
    assert os.listdir(tmp_path) == ["last"]
    assert restore(tmp_path / "last", tree(0))[0]["w"][0] == 1


def test_an_error_while_changing_places_puts_the_old_one_back(tmp_path, monkeypatch):
    save(tmp_path / "last", tree(1), {})
    rename = os.rename

    def fail_into_place(source, target):
        if os.path.basename(target) == "last" and naming.STAGED in str(source):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_into_place)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(tmp_path / "last", tree(2), {})
    assert os.listdir(tmp_path) == ["last"]
    assert is_intact(tmp_path / "last")


def test_an_interrupt_cleans_up_and_goes_on(tmp_path, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "run" / "last", tree(1), {})
    assert os.listdir(tmp_path / "run") == []


def test_removing(tmp_path):
    for step in (1, 2):
        save(tmp_path / naming.checkpoint_name(step), tree(step), {})
    remove(tmp_path / "step_00000001")
    assert os.listdir(tmp_path) == ["step_00000002"]
    with pytest.raises(CheckpointError, match="step_00000001"):
        remove(tmp_path / "step_00000001")


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    save(tmp_path / "step_00000001", tree(1), {})
    keep = ["step_00000001", "notes.tmp-12", "step_00000007.tmp-backup"]
    for name in ("step_00000001.old-12", "step_00000002.tmp-ab", *keep[1:]):
        (tmp_path / name).mkdir()
    removed = remove_leftovers(tmp_path)
    assert [path.name for path in removed] == ["step_00000001.old-12", "step_00000002.tmp-ab"]
    assert sorted(os.listdir(tmp_path)) == sorted(keep)


WRITER = """
step = int(sys.argv[1])
while True:
    step += 1
    arrays = {"w": np.full(200_000, step, np.int32)}
    save("run/last", arrays, {"step": step})
    save(f"run/step_{step:08d}", arrays, {"step": step})
    print(step, flush=True)
"""


def test_killed_at_any_moment(tmp_path, start):
    """SIGKILL during saves: what was reported is there, and whatever is found is complete."""
    rng = random.Random(0)
    done = 0
    for _ in range(KILLS):
        process = start(1, WRITER, str(done))
        done = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        out, _ = process.communicate()
        reported = max([done, *map(int, out.split())])
        _, metadata = restore(tmp_path / "run" / "last", None)
        assert metadata["step"] in (reported, reported + 1)
        newest = newest_intact(tmp_path / "run")
        arrays, metadata = restore(newest, None)
        assert metadata["step"] in (reported, reported + 1)
        assert (arrays["w"] == metadata["step"]).all()
        # Nothing half-written carries the name of a checkpoint.
        assert all(is_intact(path) for path in find_checkpoints(tmp_path / "run"))
        remove_leftovers(tmp_path / "run")
        done = metadata["step"]
        for path in find_checkpoints(tmp_path / "run")[:-1]:
            shutil.rmtree(path)


class Interrupted:
    """Finds a library whose import a signal ends, or that is broken."""

    def __init__(self, error):
        self._error = error

    def find_spec(self, name, path=None, target=None):
        if name == "orbax.checkpoint":
            raise self._error from self._error.__cause__


@pytest.mark.parametrize("kind", [ImportError, RuntimeError])
@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_a_signal_during_the_import_of_an_extension_is_not_an_error_of_the_checkpoint(
    tmp_path, monkeypatch, kind, signal
):
    """As pybind11 and Cython raise it."""
    save(tmp_path / "last", tree(1), {})
    error = kind("initialization failed")
    error.__cause__ = signal()
    monkeypatch.delitem(sys.modules, "orbax.checkpoint")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(error), *sys.meta_path])
    with pytest.raises(signal):
        restore(tmp_path / "last", tree(0))
    with pytest.raises(signal):
        save(tmp_path / "next", tree(2), {})
    assert os.listdir(tmp_path) == ["last"]


def test_a_broken_extension_is_an_error_after_an_interrupt_too(tmp_path, monkeypatch):
    save(tmp_path / "last", tree(1), {})
    monkeypatch.delitem(sys.modules, "orbax.checkpoint")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(ImportError("no such symbol")), *sys.meta_path])

    def restore_after_interrupt():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            restore(tmp_path / "last", tree(0))

    with pytest.raises(CheckpointError, match="no such symbol"):
        restore_after_interrupt()
