"""A checkpoint goes from any strategy, device count and process count to any other: same bits, no example twice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from across import ALONE, PAIR, check, save, trainer_on

HERE = Path(__file__).parent
DEADLINE = 900.0
"""Seconds after which the processes are given up; alone on a machine they take under 30."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints from the middle of an epoch, of every strategy and number of devices in one process."""
    folder = tmp_path_factory.mktemp("across")
    for name, strategy in ALONE.items():
        save(folder, name, strategy())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", ALONE)
def test_from_and_to_every_number_of_devices(folder, target):
    check(trainer_on(ALONE[target]()), folder, ALONE)


@pytest.mark.slow
def test_from_and_to_two_processes(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "NPROC": "16"}
    logs = [folder / f"{rank}.log" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        command = [sys.executable, str(HERE / "across.py"), str(port), str(rank), str(folder)]
        with log.open("w") as out:
            processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT))
    end = time.monotonic() + DEADLINE
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() for process in processes):
                break  # one failed: the other would wait for it
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    assert codes == [0, 0], "\n".join([f"exit codes {codes}", *(log.read_text()[-4000:] for log in logs)])
    for target in ALONE.values():
        check(trainer_on(target()), folder, PAIR)
