"""Two processes with two devices each, started here, compute what one process with four devices computes."""

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from one_of_two import TOGETHER, arrays, iterables, managed, split

from elegy.strategies import FSDP, DataParallel

HERE = Path(__file__).parent
DEADLINE = 400.0
"""Seconds after which the processes are given up; alone on a machine they take under 60."""

ALONE = {
    "data_parallel": lambda model: DataParallel(4),
    "sharded": TOGETHER["sharded"],
    "fsdp": lambda model: FSDP({"data": 4}, min_size=8),
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[str], Path]:
    """What each process found and printed, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "NPROC": "16"}
    results = [folder / f"{i}.pickle" for i in range(2)]
    logs = [(folder / f"{i}.log").open("w+") for i in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "one_of_two.py"), str(port), str(i), str(results[i])],
            env=environment,
            stdout=logs[i],
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]
    end = time.monotonic() + DEADLINE
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() for process in processes):
                break  # one failed: the other would wait for it
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    texts = []
    for log in logs:
        log.seek(0)
        texts.append(log.read())
        log.close()
    codes = [process.returncode for process in processes]
    assert codes == [0, 0], "\n".join([f"exit codes {codes}", *(text[-4000:] for text in texts)])
    return [pickle.loads(result.read_bytes()) for result in results], texts, folder


def close(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    # Sums over processes are taken in another order; Adam divides small gradients by small roots of squares.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected)


def test_both_processes_return_the_same(two_processes: Any) -> None:
    (first, second), _, _ = two_processes
    jax.tree.map(np.testing.assert_array_equal, first, second)


ALL = slice(None)
RUNS = {
    "arrays": arrays,
    "iterables": lambda make: iterables(make, ALL),
    "managed": lambda make: managed(make, ALL),
    "split": lambda make: split(make, list),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("strategy", TOGETHER)
def test_two_processes_equal_one_with_as_many_devices(two_processes: Any, strategy: str, run: str) -> None:
    (first, _), _, _ = two_processes
    close(first[strategy][run], RUNS[run](ALONE[strategy]))


def test_the_first_process_alone_prints_and_writes(two_processes: Any) -> None:
    _, (first, second), folder = two_processes
    assert "epoch 1/1" in first
    assert "epoch" not in second
    assert (folder / "files" / "log.csv").read_text().count("\n") == 2
    assert (folder / "files" / "saved").exists()
