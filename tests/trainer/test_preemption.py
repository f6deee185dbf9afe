"""SIGTERM or Ctrl-C in one of two processes stops both after the same step, saved; a relaunch ends the run."""

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
import json, sys, time
import numpy as np, optax
import elegy as eg
rank, port, folder, slow = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
eg.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
from boring_modules import High, regression

class Slow(eg.Callback):
    batch_hooks_read = "logs"
    def on_train_batch_end(self, event):
        time.sleep(slow)
        if rank == 0:
            open(folder + "/steps", "a").write(f"{event.step}\\n")

x, y = regression(64)
trainer = eg.Trainer(High(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), strategy="data_parallel")
saver = eg.callbacks.ModelCheckpoint(folder + "/checkpoints")
trainer.fit(x, y, batch_size=8, epochs=20, steps_per_execution=2, verbose=0, callbacks=[saver, Slow()], resume="auto")
out = [trainer.step, trainer.interrupted, [float(v).hex() for v in trainer.history.history.get("loss", [])]]
json.dump(out, open(f"{folder}/result {rank}", "w"))
"""


def launch(folder, slow):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "NPROC": "8"}
    command = [sys.executable, "-c", WORKER]
    return [
        subprocess.Popen(
            [*command, str(rank), str(port), str(folder), str(slow)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]


def results(folder, processes):
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-3000:]
    return [json.loads((folder / f"result {rank}").read_text()) for rank in range(2)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_stop_after_the_same_step(tmp_path, number):
    processes = launch(tmp_path, 0.05)
    try:
        while not (tmp_path / "steps").exists() and all(process.poll() is None for process in processes):
            time.sleep(0.05)
        processes[1].send_signal(number)
        first, second = results(tmp_path, processes)
    finally:
        for process in processes:
            process.kill()
    assert first == second
    assert first[1] == signal.SIGTERM
    assert 0 < first[0] < 160
    assert (tmp_path / "checkpoints" / f"step_{first[0]:08d}").exists()
    first, second = results(tmp_path, launch(tmp_path, 0))
    assert first == second
    assert first[:2] == [160, None]
    assert len(first[2]) == 20
