"""Run folders and low-rank adapters in two processes are those of one process with two devices."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import both_of_two
import numpy as np
import pytest

from elegy.strategies import Sharded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "8"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, both_of_two.__file__, port]
    processes = [
        subprocess.Popen([*command, str(i), str(folder / f"{i}.pickle")], env=environment, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    try:
        errors = [process.communicate(timeout=900)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return folder, [pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in range(2)]


def test_processes_share_run_folders(two):
    folder, results = two
    assert [found["run_folders"] for found in results] == [["run", "whole", "run_1"]] * 2
    assert sorted(path.name for path in (folder / "run_folders").iterdir()) == ["run", "run_1", "whole"]
    record = json.loads((folder / "run_folders" / "run" / "run.json").read_text())
    assert [one["status"] for one in record["fits"]] == ["failed", "finished"]
    rows = [(folder / "run_folders" / name / "log.csv").read_text() for name in ("run", "whole")]
    assert rows[0] == rows[1]


def test_adapters_are_those_of_one_process(two, tmp_path):
    expected = both_of_two.low_rank(Sharded({"data": 2}), tmp_path)
    for found in two[1]:
        np.testing.assert_allclose(found["low_rank"], expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_averages_are_refused(two):
    assert {found["statistics"] for found in two[1]} == {
        "update_batch_stats runs in one process, but the strategy has 2."
    }
