"""Saving beside the loop: one at a time, and no error is lost."""

import os
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from moments import signal_in, wait_until, waits_in

from elegy.checkpoint import store
from elegy.checkpoint.background import AsyncSaver
from elegy.checkpoint.store import restore
from elegy.errors import CheckpointError


@pytest.fixture
def gate(monkeypatch):
    """Holds every save in the background until it is set."""
    event = threading.Event()
    write = store.write

    def held(path, content):
        assert event.wait(600)
        write(path, content)

    monkeypatch.setattr(store, "write", held)
    yield event
    event.set()


def test_saves_and_restores(tmp_path):
    with AsyncSaver() as saver:
        for step in range(3):
            saver.save(tmp_path / f"step_{step:08d}", {"w": jnp.full(10, step)}, {"step": step})
    for step in range(3):
        arrays, metadata = restore(tmp_path / f"step_{step:08d}", None)
        assert metadata == {"step": step}
        assert (arrays["w"] == step).all()


def test_the_caller_goes_on_while_it_is_written(tmp_path, gate):
    host = np.zeros(4)
    metadata = {"history": [1]}
    saver = AsyncSaver()
    saver.save(tmp_path / "ckpt", {"jax": jnp.ones(4), "host": host}, metadata)
    assert os.listdir(tmp_path) == []
    host += 1
    metadata["history"].append(2)
    gate.set()
    saver.wait()
    arrays, found = restore(tmp_path / "ckpt", None)
    assert (arrays["host"] == 0).all()
    assert found == {"history": [1]}


def test_one_save_at_a_time(tmp_path, gate):
    saver = AsyncSaver()
    saver.save(tmp_path / "one", {}, {})
    second = threading.Thread(target=saver.save, args=(tmp_path / "two", {}, {}))
    second.start()
    wait_until(lambda: waits_in(second, AsyncSaver.wait))
    assert os.listdir(tmp_path) == []
    gate.set()
    second.join()
    saver.close()
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_errors_are_raised_once_by_whoever_waits(tmp_path):
    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "ckpt"
    saver = AsyncSaver()
    saver.save(bad, {}, {})
    with pytest.raises(CheckpointError, match="file/ckpt"):
        saver.wait()
    saver.wait()
    saver.save(bad, {}, {})
    with pytest.raises(CheckpointError, match="file/ckpt"):
        saver.save(tmp_path / "good", {}, {})
    assert not (tmp_path / "good").exists()
    saver.save(bad, {}, {})
    with pytest.raises(CheckpointError, match="file/ckpt"):
        saver.close()
    saver.close()


def test_what_cannot_be_stored_is_said_at_once(tmp_path):
    with AsyncSaver() as saver, pytest.raises(CheckpointError, match="f: a builtins"):
        saver.save(tmp_path / "ckpt", {"f": lambda: 0}, {})


def test_the_blocks_own_error_comes_first(tmp_path):
    (tmp_path / "file").write_text("")
    saver = AsyncSaver()
    saver.save(tmp_path / "file" / "ckpt", {}, {})
    with pytest.raises(ZeroDivisionError), saver:
        _ = 1 / 0


def test_then_runs_after_the_checkpoint_is_in_place(tmp_path):
    seen = []
    (tmp_path / "file").write_text("")
    saver = AsyncSaver()
    saver.save(tmp_path / "ckpt", {}, {"a": 1}, then=lambda: seen.append(restore(tmp_path / "ckpt", None)[1]))
    saver.wait()
    assert seen == [{"a": 1}]
    saver.save(tmp_path / "file" / "ckpt", {}, {}, then=lambda: seen.append("never"))
    with pytest.raises(CheckpointError):
        saver.wait()
    assert seen == [{"a": 1}]

    def fail():
        raise ZeroDivisionError("mine")

    saver.save(tmp_path / "ckpt", {}, {}, then=fail)
    with pytest.raises(ZeroDivisionError, match="mine"):
        saver.close()


def test_closed(tmp_path):
    saver = AsyncSaver()
    saver.close()
    with pytest.raises(RuntimeError, match="closed"):
        saver.save(tmp_path / "ckpt", {}, {})


def test_no_threads_are_left(tmp_path):
    with AsyncSaver() as saver:
        saver.save(tmp_path / "warm", {"w": jnp.ones(3)}, {})
        saver.wait()
        before = threading.active_count()
        for _ in range(5):
            saver.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, {})
    assert threading.active_count() <= before


def test_a_keyboard_interrupt_leaves_the_wait_for_a_save_which_goes_on(tmp_path, gate):
    saver, done = AsyncSaver(), threading.Event()
    saver.save(tmp_path / "ckpt", {"w": jnp.ones(4)}, {}, then=done.set)
    with signal_in(AsyncSaver.wait, signal.SIGINT), pytest.raises(KeyboardInterrupt):
        saver.wait()
    saver.wait()  # nobody waits any more
    with pytest.raises(CheckpointError, match="Ctrl-C interrupted the wait for a save"):
        saver.save(tmp_path / "other", {"w": jnp.ones(4)}, {})
    assert os.listdir(tmp_path) == []
    gate.set()
    assert done.wait(600)
    assert os.listdir(tmp_path) == ["ckpt"]
    assert (restore(tmp_path / "ckpt", None)[0]["w"] == 1).all()


def test_a_save_waits_for_another_one_to_the_same_path(tmp_path, monkeypatch):
    """Both are writing if the second one does not wait; then the first goes on, and the second follows."""
    finish, inside, seen = store._finish, [], []
    both = threading.Event()

    def slow(staging, content):
        inside.append(content.step)
        seen.append(len(inside))
        if len(inside) == 2:
            both.set()
        both.wait(0.2)
        finish(staging, content)
        inside.remove(content.step)

    monkeypatch.setattr(store, "_finish", slow)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    path, same = tmp_path / "best", tmp_path / "link" / "best"
    store.save(path, {"w": jnp.zeros(2)}, {"step": 0})
    with AsyncSaver() as saver:
        saver.save(path, {"w": jnp.ones(2)}, {"step": 1})
        wait_until(lambda: len(seen) == 2)
        store.save(same, {"w": jnp.full(2, 2.0)}, {"step": 2})
    assert seen == [1, 1, 1]
    assert restore(path, None)[1] == {"step": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "link"]
