"""Two processes with two devices each, started here, compute what one process with four devices computes."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from one_of_two import ALL, RUN_ON, RUNS, TOGETHER, data

from elegy.strategies import FSDP, DataParallel

pytestmark = pytest.mark.slow  # in the short run, `tests/trainer/test_preemption.py` has two processes

HERE = Path(__file__).parent
DEADLINE = 900.0
"""Seconds after which the processes are given up; alone on a machine they take under 60."""

ALONE = {
    "data_parallel": lambda model: DataParallel(4),
    "sharded": TOGETHER["sharded"],
    "fsdp": lambda model: FSDP({"data": 4}, min_size=8),
    "crossed": TOGETHER["sharded"],
}


def run_two(folder: Path, *arguments: str) -> tuple[list[int], list[str]]:
    """Exit codes and printed texts of two processes; they are ended when the deadline has passed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "NPROC": "16"}
    logs = [(folder / f"{i}.log").open("w+") for i in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "one_of_two.py"), str(port), str(i), str(folder / f"{i}.pickle"), *arguments],
            env=environment,
            stdout=logs[i],
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]
    end = time.monotonic() + DEADLINE
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
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
    return [process.returncode for process in processes], texts


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[str], Path]:
    """What each process found and printed, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("processes")
    codes, texts = run_two(folder)
    assert codes == [0, 0], "\n".join([f"exit codes {codes}", *(text[-4000:] for text in texts)])
    return [pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in range(2)], texts, folder


def close(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    # Sums over processes are taken in another order; Adam divides small gradients by small roots of squares.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), actual, expected)


def test_both_processes_return_the_same(two_processes: Any) -> None:
    (first, second), _, _ = two_processes
    for run in (*RUNS, "steps_in_a_second", "counted", "outputs"):
        jax.tree.map(np.testing.assert_array_equal, first[run], second[run])


@pytest.mark.parametrize(("run", "strategy"), [(run, name) for run, names in RUN_ON.items() for name in names])
def test_two_processes_equal_one_with_as_many_devices(two_processes: Any, strategy: str, run: str) -> None:
    (first, _), _, _ = two_processes
    close(first[run][strategy], RUNS[run](ALONE[strategy], ALL))


def test_the_first_process_alone_prints_and_writes(two_processes: Any) -> None:
    _, (first, second), folder = two_processes
    assert "epoch 1/1" in first
    assert "epoch" not in second
    assert (folder / "files" / "log.csv").read_text().count("\n") == 2
    assert (folder / "files" / "saved").exists()
    (board,) = (folder / "files" / "board" / "train").iterdir()
    assert b"params/Dense_0/kernel" in board.read_bytes()


FAILURES = {
    "no batch": ("reading the first batch of fit failed in process 1", "ValueError: the data of fit is empty"),
    "a batch that cannot be read": ("reading batch 1 failed in process 1", "OSError: the disk is gone"),
    "fewer batches than asked for": ("failed in process 1", "steps_per_epoch=3 is beyond the data"),
    "another shape": ("process 1 and process 0 differ", "Process 1 has 0: float32[rows,7]"),
    "a label too high": ("the check of the labels of fit failed in process 1", "the target contains 9"),
    "no device": ("has no device of process 1", "has no device of process 1"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_is_wrong_in_one_process_ends_the_call_in_both(two_processes: Any, case: str) -> None:
    results, _, _ = two_processes
    for result, message in zip(results, FAILURES[case], strict=True):
        assert message in result["messages"][case]


def test_runs_end_at_the_same_place_where_shares_do_not(two_processes: Any) -> None:
    (first, _), _, _ = two_processes
    assert first["counted"] == (2, 0)


def test_outputs_of_a_core_level_step_are_whole(two_processes: Any) -> None:
    (first, _), _, _ = two_processes
    np.testing.assert_array_equal(first["outputs"]["host"], np.tile(np.arange(8), 4))
    np.testing.assert_array_equal(first["outputs"]["global"], data("many")[0] * 2)


def test_a_process_that_dies_ends_the_other(tmp_path: Path) -> None:
    """JAX notices within the heartbeat's timeout; nothing waits longer."""
    codes, _ = run_two(tmp_path, "dies")
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGKILL)  # ended by itself, not by the deadline


UNEQUAL = """
import sys
import flax.linen as nn, jax, numpy as np, optax
import elegy as eg

port, process = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", process + 1)
eg.distributed.initialize("127.0.0.1:" + port, 2, process, initialization_timeout=300)
x = np.ones((12, 2), np.float32)
trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), strategy="data_parallel")
try:
    trainer.fit(x, x[:, :1], batch_size=6, verbose=0)
except RuntimeError as error:
    print(error)
"""


def test_processes_with_different_numbers_of_devices_are_refused():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu", "NPROC": "4"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", UNEQUAL, port, str(i)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for i in range(2)
    ]
    texts = [one.communicate(timeout=DEADLINE)[0] for one in started]
    message = "the processes have different numbers of devices (process 0 has 1, process 1 has 2): give each the same"
    assert all(message in text for text in texts), texts
