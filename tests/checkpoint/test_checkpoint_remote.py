"""Checkpoints at addresses: the same bits, and at every moment an intact one that is found."""

import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from elegy.callbacks import ModelCheckpoint
from elegy.checkpoint import (
    Address,
    AsyncSaver,
    checkpoint_step,
    find_checkpoints,
    is_intact,
    newest_intact,
    remove,
    remove_leftovers,
    restore,
    save,
    verify,
)
from elegy.checkpoint.address import path_of
from elegy.errors import CheckpointError, CheckpointFormatError

RUN = "memory://bucket/run"
STORE = MemoryFileSystem.store


class Bucket(MemoryFileSystem):
    """As object stores are: there are no directories, and listings are remembered until one asks for new ones."""

    protocol = "bucket"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    listings: ClassVar[dict] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("bucket://"))

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def ls(self, path, detail=True, **kwargs):
        if path not in self.listings:
            self.listings[path] = super().ls(path, detail=True)
        found = self.listings[path]
        return found if detail else [entry["name"] for entry in found]

    def invalidate_cache(self, path=None):
        self.listings.clear()


fsspec.register_implementation("bucket", Bucket)


@pytest.fixture(autouse=True)
def empty_store():
    yield
    for files in (MemoryFileSystem, Bucket):
        files.store.clear()
        files.pseudo_dirs[:] = [""]
    Bucket.listings.clear()


def tree(step):
    return {"w": np.full(1000, step, np.int32)}


def rich_tree():
    return {
        "bf16": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "nothing": np.zeros((0, 3), np.float32),
        "key": jax.random.key(7),
        "scalar": np.float64(1 / 3),
        "python": 3,
        "nested": [np.arange(6).reshape(2, 3), True],
    }


def bits(leaf):
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return type(leaf), np.asarray(leaf).dtype, np.asarray(leaf).tobytes()


def names(paths):
    return [path.name for path in paths]


class Dies:
    """Lets some calls to a method of the store through; then the store is gone, or refuses just once."""

    def __init__(self, monkeypatch, method, after, *, for_good):
        self.left, self.for_good = after, for_good
        for name in ("put_file", "rm_file") if for_good else (method,):
            real = getattr(MemoryFileSystem, name)
            monkeypatch.setattr(MemoryFileSystem, name, self._wrapped(real, name == method))

    def _wrapped(self, real, counts):
        def call(files, *args, **kwargs):
            self.left -= counts
            if self.left < 0 and (self.for_good or self.left == -1):
                raise ConnectionError("the network is down")
            return real(files, *args, **kwargs)

        return call


def every(monkeypatch, method, prepare, action, *, for_good=True):
    """Fails the first call of a method in an action, then the second, ... until all succeed; yields what it raised."""
    prepare()
    prepared = {name: file.getvalue() for name, file in STORE.items()}
    for after in range(100):
        STORE.clear()
        for name, data in prepared.items():
            put(name, data)
        raised = None
        with monkeypatch.context() as patch:
            dies = Dies(patch, method, after, for_good=for_good)
            try:
                action()
            except CheckpointError as error:
                raised = str(error)
        if dies.left >= 0:
            assert raised is None
            return
        yield raised


@pytest.mark.parametrize("protocol", ["memory", "bucket", "file", "local"])
def test_the_same_bits_come_back(tmp_path, protocol):
    run = f"{protocol}://{tmp_path}/a run"
    saved = rich_tree()
    for step in (1, 2):
        save(f"{run}/step_{step:08d}", saved, {"step": step})
    read, metadata = restore(run, saved)
    assert metadata == {"step": 2}
    assert jax.tree.structure(read) == jax.tree.structure(saved)
    assert [bits(leaf) for leaf in jax.tree.leaves(read)] == [bits(leaf) for leaf in jax.tree.leaves(saved)]
    assert names(find_checkpoints(run)) == ["step_00000001", "step_00000002"]
    newest = newest_intact(run + "/")
    assert isinstance(newest, Address)
    assert (str(newest), newest.name, checkpoint_step(newest)) == (f"{run}/step_00000002", "step_00000002", 2)
    assert restore(newest)[1] == {"step": 2}
    remove(newest)
    assert restore(run)[1] == {"step": 1}
    for step in (3, 4):
        save(f"{run}/step_00000001", saved, {"step": step})
        assert restore(run)[1] == {"step": step}
    assert names(find_checkpoints(run)) == ["step_00000001"]
    assert remove_leftovers(run) == []


def test_copies_made_by_other_tools_can_be_read(tmp_path):
    """At an address a checkpoint has the same files as in a directory."""
    files = fsspec.filesystem("memory")
    save(RUN, tree(1), {"step": 1})
    files.get(RUN, str(tmp_path / "down"), recursive=True)
    assert restore(tmp_path / "down")[1] == {"step": 1}
    save(tmp_path / "up", tree(2), {"step": 2})
    files.put(str(tmp_path / "up"), "memory://bucket/copy", recursive=True)
    assert restore("memory://bucket/copy")[1] == {"step": 2}


def test_replacing_leaves_the_new_one_alone():
    for step in (1, 2, 3):
        save(RUN, tree(step), {"step": step})
        assert restore(RUN, tree(0))[1] == {"step": step}
        assert {name.split("/")[2] for name in STORE} == {"run"}


def test_beside_the_loop():
    with AsyncSaver() as saver:
        for step in (1, 2):
            saver.save(f"{RUN}/step_{step:08d}", tree(step), {"step": step})
    assert restore(RUN, tree(0))[1] == {"step": 2}


def test_temporary_directories_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    save(f"{RUN}/step_00000001", tree(1), {})
    restore(RUN)
    verify(f"{RUN}/step_00000001")
    STORE["/bucket/run/step_00000001/metadata.json"].truncate(1)
    with pytest.raises(CheckpointError):
        restore(f"{RUN}/step_00000001")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("for_good", [False, True])
def test_an_upload_that_fails_at_any_file(monkeypatch, for_good):
    old, new = f"{RUN}/step_00000001", f"{RUN}/step_00000002"
    rounds = 0
    for error in every(
        monkeypatch,
        "put_file",
        lambda: save(old, tree(1), {"step": 1}),
        lambda: save(new, tree(2), {"step": 2}),
        for_good=for_good,
    ):
        rounds += 1
        assert re.search(r"step_00000002: the checkpoint could not be written: .*network is down", error)
        assert names(find_checkpoints(RUN)) == ["step_00000001"]
        assert restore(RUN)[1] == {"step": 1}
        left = any("step_00000002" in name for name in STORE)
        assert left == (for_good and rounds > 1)
        remove_leftovers(RUN)
        assert not any("step_00000002" in name for name in STORE)
    assert rounds > 5
    assert names(find_checkpoints(RUN)) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize(
    ("method", "for_good", "left"),
    [
        ("put_file", False, {1, 2}),
        ("put_file", True, {1, 2}),
        ("rm_file", False, {2}),  # nothing is removed before the new one is complete beside the old one
        ("rm_file", True, {1, 2}),
    ],
)
def test_a_replacement_that_fails_at_any_call(monkeypatch, method, for_good, left):
    path = f"{RUN}/step_00000001"
    seen = set()
    for _ in every(
        monkeypatch,
        method,
        lambda: save(path, tree(1), {"step": 1}),
        lambda: save(path, tree(2), {"step": 2}),
        for_good=for_good,
    ):
        arrays, metadata = restore(path, tree(0))
        assert (arrays["w"] == metadata["step"]).all()
        seen.add(metadata["step"])
        assert restore(RUN)[1] == metadata
        assert len(find_checkpoints(RUN)) == 1
        remove_leftovers(RUN)
        assert restore(path)[1] == restore(RUN)[1] == metadata
        if for_good:  # and the next save puts everything in order
            save(path, tree(3), {"step": 3})
            assert restore(path)[1] == {"step": 3}
            assert {name.split("/")[3] for name in STORE} == {"step_00000001"}
    assert seen == left


def test_a_removal_that_fails_at_any_file(monkeypatch):
    path = f"{RUN}/step_00000001"
    for _ in every(monkeypatch, "rm_file", lambda: save(path, tree(1), {"step": 1}), lambda: remove(path)):
        assert all(is_intact(found) for found in find_checkpoints(RUN))
        remove_leftovers(RUN)
        assert bool(STORE) == bool(find_checkpoints(RUN))


def flip(name):
    data = bytearray(STORE[name].getvalue())
    data[len(data) // 2] ^= 1
    put(name, bytes(data))


def put(name, data):
    fsspec.filesystem("memory").pipe_file(name, data)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda name: put(name, STORE[name].getvalue()[:-1]),
    "longer": lambda name: put(name, STORE[name].getvalue() + b" "),
    "deleted": lambda name: STORE.pop(name),
    "beside": lambda name: put(name + "x", b"new"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named(damage):
    for step in (1, 2):
        save(f"{RUN}/step_{step:08d}", tree(step), {"step": step})
    pristine = {name: file.getvalue() for name, file in STORE.items() if "step_00000002" in name}
    for name in pristine:
        if damage == "deleted" and name.endswith("manifest.json"):
            continue  # then it was never finished
        DAMAGES[damage](name)
        base = name.removeprefix("/bucket/run/step_00000002/")
        with pytest.raises(CheckpointError, match=rf"^memory://bucket/run/step_00000002: (.|\n)*{base}"):
            verify(f"{RUN}/step_00000002")
        with pytest.warns(UserWarning, match=rf"using memory://bucket/run/step_00000001 instead(.|\n)*{base}"):
            assert restore(RUN)[1] == {"step": 1}
        for one in [one for one in STORE if "step_00000002" in one]:
            del STORE[one]
        for one, data in pristine.items():
            put(one, data)
    assert restore(RUN)[1] == {"step": 2}


def crafted(**changes):
    """A checkpoint with a manifest as somebody else would have written it: its checksum is right."""
    save(f"{RUN}/step_00000001", tree(1), {})
    name = "/bucket/run/step_00000001/manifest.json"
    text = json.dumps(json.loads(STORE[name].getvalue())["body"] | changes, sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    put(name, f'{{"body": {text}, "sha256": "{checksum}"}}\n'.encode())


def test_another_format_is_not_passed_over():
    crafted(format=0)
    with pytest.raises(CheckpointFormatError, match=r"^memory://.*has format 0"):
        newest_intact(RUN)


@pytest.mark.parametrize("lead", ["../outside", "arrays/../../outside", "{tmp}/outside"])
def test_directories_that_lead_outside_are_not_made(tmp_path, monkeypatch, lead):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    crafted(directories=[lead.format(tmp=tmp_path)])
    made = []
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, *args, **kwargs: (made.append(path), mkdir(path, *args, **kwargs)))
    with pytest.raises(CheckpointError, match="outside/: missing"):
        verify(f"{RUN}/step_00000001")
    assert made
    assert not any("outside" in str(path) for path in made)


def test_files_that_lead_outside_are_refused():
    save(f"{RUN}/step_00000001", tree(1), {})
    put("/bucket/run/step_00000001/arrays/../../../outside", b"planted")
    with pytest.raises(CheckpointError, match="leads out of the directory"):
        restore(f"{RUN}/step_00000001")


def test_other_things_are_not_touched():
    put("/bucket/home/thesis", b"mine")
    put("/bucket/file", b"mine")
    for path, message in (("home", "other things than a checkpoint .thesis."), ("file", "this is a file")):
        for call in (lambda path: save(path, tree(1), {}), remove):
            with pytest.raises(CheckpointError, match=message):
                call(f"memory://bucket/{path}")
    assert {name: file.getvalue() for name, file in STORE.items()} == {
        "/bucket/home/thesis": b"mine",
        "/bucket/file": b"mine",
    }


def test_leftovers_are_removed_and_nothing_else():
    save(f"{RUN}/step_00000001", tree(1), {})
    kept = set(STORE)
    for name in ("notes.txt", "notes/a", "step_00000007.tmp-backup/a", "best/metadata.json"):
        put(f"/bucket/run/{name}", b"mine")
    kept = set(STORE)
    for name in ("step_00000002/metadata.json", "step_00000001.old-12/manifest.json", "step_00000003.old-12/arrays/d"):
        put(f"/bucket/run/{name}", b"left")
    gone = remove_leftovers(RUN)
    assert names(gone) == ["step_00000001.old-12", "step_00000002", "step_00000003.old-12"]
    assert set(STORE) == kept


@pytest.mark.parametrize("call", [find_checkpoints, newest_intact, remove_leftovers, restore, is_intact])
@pytest.mark.parametrize("error", [PermissionError("forbidden"), ConnectionError("no network"), KeyError("token")])
def test_a_store_that_cannot_be_asked_is_not_an_empty_one(monkeypatch, call, error):
    save(f"{RUN}/step_00000001", tree(1), {})
    before = set(STORE)

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(MemoryFileSystem, "ls", fail)
    with pytest.raises(CheckpointError, match=rf"^{RUN}: .*{error.args[0]}"):
        call(RUN)
    assert set(STORE) == before


def test_a_download_that_fails_is_no_damage(monkeypatch):
    """To pass over a checkpoint because the network is down would lose steps."""
    for step in (1, 2):
        save(f"{RUN}/step_{step:08d}", tree(step), {"step": step})
    real = MemoryFileSystem.get_file

    def fail(files, remote, local, **kwargs):
        if "step_00000002/arrays" in remote:
            raise ConnectionError("no network")
        return real(files, remote, local, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "get_file", fail)
    for call in (restore, newest_intact):
        with pytest.raises(CheckpointError, match=r"step_00000002: the checkpoint cannot be downloaded: .*no network"):
            call(RUN)
    with pytest.raises(CheckpointError, match="no network"):
        is_intact(f"{RUN}/step_00000002")


def test_what_is_not_there():
    assert find_checkpoints(RUN) == []
    assert newest_intact(RUN) is None
    assert not is_intact(RUN)
    for call in (restore, verify, remove):
        with pytest.raises(CheckpointError, match=rf"^{RUN}: there is no such checkpoint"):
            call(RUN)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("xyz://bucket/run", r"xyz://bucket/run: no file system has the protocol 'xyz'. Known: .*gs.*memory.*s3"),
        (Path("gs://bucket/run"), "Give it as a string, because `Path` takes a slash out"),
        ("simplecache::memory://run", "without caches or archives"),
        ("memory://run/step_*", "are patterns"),
    ],
)
@pytest.mark.parametrize("call", [lambda path: save(path, tree(1), {}), restore, remove, ModelCheckpoint])
def test_addresses_that_cannot_be_served(address, message, call):
    with pytest.raises(CheckpointError, match=message):
        call(address)


def test_libraries_that_are_missing(monkeypatch):
    def missing(_protocol):
        raise ImportError("Install s3fs to access S3")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec, "get_filesystem_class", missing)
        with pytest.raises(ImportError, match="s3://bucket/run cannot be reached: Install s3fs to access S3"):
            ModelCheckpoint("s3://bucket/run")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"needs the library 'fsspec': .*elegy\[remote\]"):
        ModelCheckpoint("s3://bucket/run")
    ModelCheckpoint("here")


def test_several_processes_need_a_directory_that_they_share(monkeypatch):
    checkpoint = ModelCheckpoint(RUN)  # made before the processes have found each other
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for call in (lambda: save(RUN, tree(1), {}), lambda: restore(RUN), lambda: checkpoint._check_directory(0)):
        with pytest.raises(CheckpointError, match=f"{RUN}: .*mounted file system that all of them share"):
            call()


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("memory://run", "memory://run/x"),
        ("memory://run//", "memory://run/x"),
        ("memory://", "memory://x"),
        ("file:///", "file:///x"),
        ("file:///a/b c", "file:///a/b c/x"),
    ],
)
def test_parts_of_addresses(text, joined):
    path = path_of(text) / "x"
    assert (os.fspath(path), path.name, path) == (joined, "x", Address(joined))
    assert path.parent == Address(text)
