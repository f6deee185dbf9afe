"""Folders of runs are numbered without races."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from elegy.runs.place import Lock, candidates, claim, is_locked, runs_of

CODE = """
import sys, time
from pathlib import Path
from elegy.runs.place import claim
Path(sys.argv[1]).touch()
while not (Path("one").exists() and Path("other").exists()):  # both begin at once
    time.sleep(0.001)
for _ in range(20):
    print(claim(Path("runs/a")).name)
"""


def test_processes_at_once_get_folders_of_their_own(start, tmp_path):
    processes = [start(1, CODE, name) for name in ("one", "other")]
    names = [name for process in processes for name in process.communicate(timeout=600)[0].split()]
    assert len(names) == 40
    assert sorted(names) == sorted(["a", *(f"a_{number}" for number in range(1, 40))])


def test_nothing_that_is_there_is_taken(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").touch()
    (tmp_path / "a_1").touch()
    (tmp_path / "a_2").mkdir()
    assert claim(tmp_path / "a") == tmp_path / "a_2"
    assert [*(tmp_path / "a_2").iterdir()] == [tmp_path / "a_2" / "run.json"]


def test_the_runs_of_a_name_come_newest_first(tmp_path):
    for folder, name in [("a", "a"), ("a_2", "a"), ("a_10", "a"), ("a_3", "a_3"), ("ab", "ab")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.json").write_text(json.dumps({"name": name}))
    assert [path.name for path in runs_of(tmp_path / "a")] == ["a_10", "a_2", "a"]
    assert runs_of(Path("/nowhere/a")) == []


def test_a_lock_is_for_one(tmp_path):
    one, two = Lock(), Lock()
    assert one.acquire(tmp_path)
    assert not two.acquire(tmp_path)
    assert is_locked(tmp_path)
    one.release()
    assert not is_locked(tmp_path)
    assert two.acquire(tmp_path)
    two.release()


FORKS = """
import os, time, warnings
from pathlib import Path
from elegy.runs.place import Lock

warnings.simplefilter("ignore")  # of a fork with threads
lock = Lock()
assert lock.acquire(Path("."))
worker = os.fork()
if worker == 0:
    print(os.getpid(), flush=True)  # the worker says it, after what Python does in a forked process
    os.close(1)
    time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path):
    with subprocess.Popen([sys.executable, "-c", FORKS], cwd=tmp_path, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        try:
            assert is_locked(tmp_path)
            parent.kill()
            parent.wait()
            os.kill(worker, 0)  # it is still there
            assert not is_locked(tmp_path)
        finally:
            os.kill(worker, signal.SIGKILL)


def test_candidates_keep_dots():
    names = candidates(Path("lr=0.1"))
    assert [next(names).name for _ in range(2)] == ["lr=0.1", "lr=0.1_1"]
