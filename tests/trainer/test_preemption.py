"""Processes that are told to stop, or are lost: the others end too, and a relaunch ends the run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = """
import json, os, sys, time
import numpy as np, optax
import elegy as eg
rank, port, folder, number, timeout = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
eg.distributed.initialize(f"127.0.0.1:{port}", 2, rank, heartbeat_timeout=timeout)
from boring_modules import High, regression

class Signal(eg.Callback):
    batch_hooks_read = "logs"
    def on_train_batch_end(self, event):
        event.logs["loss"]  # waits: neither process is far ahead of the other
        if rank == 0:
            open(folder + "/steps", "a").write(f"{event.step}\\n")
        elif number and event.step == 20:  # by a clock, it might come after a fast run has ended
            os.kill(os.getpid(), number)

x, y = regression(64)
trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), strategy="data_parallel")
saver = eg.callbacks.ModelCheckpoint(folder + "/checkpoints")
trainer.fit(x, y, batch_size=8, epochs=20, steps_per_execution=2, verbose=0, callbacks=[saver, Signal()], resume="auto")
out = [trainer.step, trainer.interrupted, [float(v).hex() for v in trainer.history.history.get("loss", [])]]
json.dump(out, open(f"{folder}/result {rank}", "w"))
"""


def launch(folder, number=0, heartbeat_timeout=100, program=WORKER):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "NPROC": "8"}
    command = [sys.executable, "-c", program]
    told = [str(port), str(folder), str(int(number)), str(heartbeat_timeout)]
    return [
        subprocess.Popen([*command, str(rank), *told], env=environment, stderr=subprocess.PIPE) for rank in range(2)
    ]


def results(folder, processes):
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()[-3000:]
    return [json.loads((folder / f"result {rank}").read_text()) for rank in range(2)]


SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", SIGNALS)
def test_all_processes_stop_after_the_same_step(tmp_path, number):
    processes = launch(tmp_path, number)
    try:
        first, second = results(tmp_path, processes)
    finally:
        for process in processes:
            process.kill()
    assert first == second
    assert first[1] == signal.SIGTERM
    assert 20 <= first[0] < 160
    assert (tmp_path / "checkpoints" / f"step_{first[0]:08d}").exists()
    first, second = results(tmp_path, launch(tmp_path))
    assert first == second
    assert first[:2] == [160, None]
    assert len(first[2]) == 20


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_a_relaunch_ends_the_run(tmp_path):
    processes = launch(tmp_path, signal.SIGKILL, heartbeat_timeout=10)
    try:
        processes[1].wait(timeout=600)
        _, errors = processes[0].communicate(timeout=90)  # JAX's own timeout is 100 s: nobody waits for that
    finally:
        for process in processes:
            process.kill()
        processes[1].communicate()
    assert processes[0].returncode != 0, errors.decode()[-3000:]
    before = [int(step) for step in (tmp_path / "steps").read_text().split()]
    first, second = results(tmp_path, launch(tmp_path))
    assert first == second
    assert first[:2] == [160, None]
    after = [int(step) for step in (tmp_path / "steps").read_text().split()][len(before) :]
    assert before == list(range(1, before[-1] + 1))
    assert after == list(range(after[0], 161))
    assert 16 < after[0] <= before[-1] + 1
    assert before[-1] - (after[0] - 1) <= 8  # it is saved after every epoch of 8 steps

    (tmp_path / "whole").mkdir()
    whole, _ = results(tmp_path / "whole", launch(tmp_path / "whole"))
    assert whole == first


BLOCKED = (
    WORKER.split("class Signal")[0]
    + """
def share():
    x, y = regression(64)
    for k in range(8):
        if (rank, k) == (1, 5):
            time.sleep(600)
        yield x[4 * k : 4 * k + 4], y[4 * k : 4 * k + 4]

trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), strategy="data_parallel")
saver = eg.callbacks.ModelCheckpoint(folder + "/checkpoints")
waits = lambda event: (rank, event.step) == (1, 5) and open(folder + "/waits", "w").close()
ends = eg.callbacks.LambdaCallback(on_train_batch_end=waits)
trainer.fit(share, epochs=2, verbose=0, callbacks=[saver, ends])
json.dump([trainer.step, trainer.interrupted], open(f"{folder}/result {rank}", "w"))
"""
)


def test_a_process_that_waits_for_data_ends_all_of_them_at_the_same_step(tmp_path):
    processes = launch(tmp_path, program=BLOCKED)
    try:
        while not (tmp_path / "waits").exists() and all(process.poll() is None for process in processes):
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGINT)
        assert results(tmp_path, processes) == [[5, signal.SIGTERM]] * 2
    finally:
        for process in processes:
            process.kill()
    assert (tmp_path / "checkpoints" / "step_00000005").exists()


SCRIPT = """
import sys, time
import optax
import elegy as eg
from boring_modules import High, regression

class Wait(eg.Callback):
    batch_hooks_read = "logs"
    def on_train_batch_end(self, event):
        print(event.step, flush=True)
        while sys.argv[1] == "wait" and not event.trainer.stop_training:  # for the signal
            time.sleep(0.01)

trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
saver = eg.callbacks.ModelCheckpoint("checkpoints")
trainer.fit(*regression(64), batch_size=8, epochs=20, verbose=0, callbacks=[saver, Wait()], resume="auto")
if trainer.interrupted:
    sys.exit(128 + trainer.interrupted)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_scheduler_reads_the_exit_status(tmp_path, number):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}

    def start(how):
        command = [sys.executable, "-c", SCRIPT, how]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with start("wait") as process:
        assert process.stdout.readline() == b"1\n"
        process.send_signal(number)
        out, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number, errors.decode()
    last = int((b"1\n" + out).split()[-1])
    assert last < 160
    assert (tmp_path / "checkpoints" / f"step_{last:08d}").exists()
    with start("run") as process:
        out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    assert [int(step) for step in out.split()] == list(range(last + 1, 161))
