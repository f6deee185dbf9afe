"""Damage of every sort is detected and named: nothing is restored from a checkpoint that has changed."""

import hashlib
import json
import os
import random
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.checkpoint import find_checkpoints, is_intact, naming, newest_intact, remove_leftovers, verify
from elegy.checkpoint.store import restore, save
from elegy.errors import CheckpointError, CheckpointFormatError

# ELEGY_CORRUPTIONS=10000 for a long run.
CORRUPTIONS = int(os.environ.get("ELEGY_CORRUPTIONS", "220"))
TREE = {"w": jnp.arange(30_000, dtype=jnp.float32), "zero": jnp.zeros(5000), "key": jax.random.key(0), "n": 3}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("pristine") / "step_00000001"
    save(path, TREE, {"step": 1, "history": {"loss": [0.1] * 50}})
    return path


@pytest.fixture
def path(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / pristine.name)
    return tmp_path / pristine.name


def files_of(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


def flip_bit(rng, path):
    file = rng.choice(files_of(path))
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data) * 8)
    data[place // 8] ^= 1 << place % 8
    file.write_bytes(data)
    return file


def zero_block(rng, path):
    while True:
        file = rng.choice(files_of(path))
        data = bytearray(file.read_bytes())
        start, length = rng.randrange(len(data)), rng.choice([1, 16, 512, 4096])
        block = data[start : start + length]
        if any(block):
            data[start : start + length] = bytes(len(block))
            file.write_bytes(data)
            return file


def truncate(rng, path):
    file = rng.choice(files_of(path))
    os.truncate(file, rng.randrange(file.stat().st_size))
    return file


def append(rng, path):
    file = rng.choice(files_of(path))
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.choice([1, 100])))
    return file


def delete(rng, path):
    file = rng.choice(files_of(path))
    file.unlink()
    return file


def delete_directory(rng, path):
    folder = rng.choice(sorted(p for p in path.rglob("*") if p.is_dir()))
    shutil.rmtree(folder)
    return folder


def swap(rng, path):
    while True:
        one, other = rng.sample(files_of(path), 2)
        if one.read_bytes() != other.read_bytes():
            break
    shelf = path / "shelf"
    one.rename(shelf)
    other.rename(one)
    shelf.rename(other)
    return other if other.name == "manifest.json" else one  # the manifest is read first


def add_file(rng, path):
    folder = rng.choice([path, *(p for p in path.rglob("*") if p.is_dir())])
    (folder / "extra").write_bytes(b"")
    return folder / "extra"


def add_directory(rng, path):
    (path / str(rng.randrange(1000))).mkdir()
    return path


def empty_directory(rng, path):
    shutil.rmtree(path)
    path.mkdir()
    return path


def replace_by_link(rng, path):
    file = rng.choice(files_of(path))
    copy = path.parent / "copy"
    file.rename(copy)
    file.symlink_to(copy)
    return file


DAMAGES = [
    flip_bit, zero_block, truncate, append, delete, delete_directory, swap, add_file, add_directory, empty_directory,
    replace_by_link,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(CORRUPTIONS))
def test_random_damage_is_never_silent(path, seed):
    rng = random.Random(seed)
    # Half of the runs are flipped bits: the ones that every other check misses.
    damage = flip_bit if seed % 2 else DAMAGES[seed // 2 % len(DAMAGES)]
    touched = damage(rng, path)
    with pytest.raises(CheckpointError) as caught:
        restore(path, TREE)
    named = touched.name if touched != path else path.name
    assert named in str(caught.value)
    assert str(path) in str(caught.value)
    assert not is_intact(path)
    with pytest.warns(UserWarning, match=path.name):
        assert newest_intact(path.parent) is None


def test_the_pristine_checkpoint_is_intact(path):
    verify(path)
    assert is_intact(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_intact(path.parent) == path


def test_every_bit_of_the_manifest_counts(path):
    manifest = path / "manifest.json"
    data = manifest.read_bytes()
    for place in range(0, len(data) * 8, 61):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        manifest.write_bytes(damaged)
        assert not is_intact(path), place
    manifest.write_bytes(data)
    assert is_intact(path)


def test_falling_back_to_the_newest_intact_one(path, pristine):
    for step in (2, 3, 10):
        shutil.copytree(pristine, path.with_name(f"step_{step:08d}"))
    (path.parent / "step_00000011").mkdir()
    (path.parent / "step_00000012.tmp-0123").mkdir()
    (path.parent / "other").mkdir()
    os.truncate(path.with_name("step_00000010") / "metadata.json", 3)
    names = [found.name for found in find_checkpoints(path.parent)]
    assert names == [f"step_{step:08d}" for step in (1, 2, 3, 10, 11)]
    with pytest.warns(UserWarning, match="skipped damaged checkpoints") as caught:
        assert newest_intact(path.parent).name == "step_00000003"
    (warning,) = caught
    assert "step_00000011: this is not a checkpoint: the directory is empty" in str(warning.message)
    assert "metadata.json: holds 3 bytes" in str(warning.message)
    assert "step_00000002" not in str(warning.message)
    (path.with_name("step_00000003") / "metadata.json").write_text('{"step": 1}')
    with pytest.warns(UserWarning, match=r"step_00000003: .*\n.*metadata\.json: holds"):
        assert restore(path.parent, TREE)[1]["step"] == 1
    for left in find_checkpoints(path.parent):
        shutil.rmtree(left / "arrays", ignore_errors=True)
    with (
        pytest.warns(UserWarning, match="no intact checkpoint is left"),
        pytest.raises(CheckpointError, match="none of the checkpoints in this directory is intact"),
    ):
        restore(path.parent, TREE)


def rewrite_manifest(path, change):
    """Writes a manifest with a right checksum, as an attacker or another release would."""
    body = json.loads((path / "manifest.json").read_text())["body"]
    change(body)
    text = json.dumps(body, sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(f'{{"body": {text}, "sha256": "{checksum}"}}\n')


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version(path, version):
    rewrite_manifest(path, lambda body: body.update(format=version))
    message = rf"has format {version!r}.*this release reads format 1"
    with pytest.raises(CheckpointFormatError, match=message):
        restore(path, TREE)
    # It is not damaged: nobody may pass over it and begin from an older one, or anew.
    with pytest.raises(CheckpointFormatError, match=message):
        newest_intact(path.parent)


def test_paths_cannot_leave_the_directory(path):
    outside = path.parent / "secret"
    outside.write_text("x")
    entry = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    for name in ("../secret", str(outside), "arrays/../../secret"):
        rewrite_manifest(path, lambda body, name=name: body["files"].update({name: entry}))
        with pytest.raises(CheckpointError, match="secret: missing"):
            restore(path, TREE)
        rewrite_manifest(path, lambda body, name=name: body["files"].pop(name))
    rewrite_manifest(path, lambda body: body["leaves"][0].update(array="../../secret"))
    with pytest.raises(CheckpointError):
        restore(path, TREE)


def test_links_to_directories_are_refused(path):
    shutil.move(path / "arrays", path.parent / "arrays")
    (path / "arrays").symlink_to(path.parent / "arrays")
    with pytest.raises(CheckpointError, match="arrays is a link"):
        restore(path, TREE)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(leaves=[{"path": "w"}]),
        lambda body: body["leaves"][0]["leaf"].update(dtype="object"),
        lambda body: body["leaves"][0]["leaf"].update(kind="pickle"),
        lambda body: body["leaves"][0]["leaf"].update(shape=["x"]),
        lambda body: body.update(files=[]),
        lambda body: body.pop("directories"),
        lambda body: body.pop("leaves"),
    ],
)
def test_a_manifest_that_makes_no_sense(path, change):
    rewrite_manifest(path, change)
    with pytest.raises(CheckpointError):
        restore(path, None)


def test_a_planted_pickle_is_never_executed(path):
    """Files that would run code if anybody unpickled them, with a manifest that vouches for them."""
    marker = path.parent / "executed"
    bomb = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    for file in files_of(path):
        if file.name != "manifest.json":
            file.write_bytes(bomb)
    digest = {"size": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
    rewrite_manifest(path, lambda body: body.update(files=dict.fromkeys(body["files"], digest)))
    verify(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore(path, TREE)
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore(path, None)
    assert not marker.exists()


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: p.mkdir(), lambda p: None])
def test_what_is_no_checkpoint(tmp_path, make):
    make(tmp_path / "there")
    with pytest.raises(CheckpointError, match=r"no such checkpoint|not a checkpoint"):
        restore(tmp_path / "there", None)


def test_values_are_not_read_from_a_damaged_checkpoint(path, monkeypatch):
    (path / "metadata.json").write_text("{}")
    monkeypatch.setattr("elegy.checkpoint.store.read_arrays", lambda *_: pytest.fail("read before verified"))
    with pytest.raises(CheckpointError, match=r"metadata\.json"):
        restore(path, TREE)


def test_an_interrupted_replacement_is_found_where_it_waits(path):
    waiting = path.with_name(path.name + naming.REPLACED + "12ab")
    path.rename(waiting)
    assert find_checkpoints(path.parent) == [waiting]
    assert naming.checkpoint_step(waiting) == 1
    assert newest_intact(path.parent) == waiting
    np.testing.assert_array_equal(restore(path, TREE)[0]["w"], TREE["w"])
    assert remove_leftovers(path.parent) == []
    save(path, {}, {})
    assert find_checkpoints(path.parent) == [path]
    assert not waiting.exists()
