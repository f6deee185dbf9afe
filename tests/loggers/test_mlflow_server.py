"""MLflow with a real server, which this test starts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings

import flax.linen as nn
import numpy as np
import optax
import pytest
from mlflow import MlflowClient

import elegy as eg
from elegy.callbacks import ModelCheckpoint
from elegy.loggers import MLflow

X = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
TOO_LONG = "a" * 300  # MLflow refuses names of more than 250 characters


@pytest.fixture
def address(tmp_path):
    """The address of a server, which ends with the test."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/runs.db",
        "--artifacts-destination",
        str(tmp_path / "art"),
    ]
    without_jobs = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.txt").open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=without_jobs, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health") as answer:
                if answer.status == 200:
                    break
            time.sleep(0.2)
        assert server.poll() is None, (tmp_path / "server.txt").read_text()
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):  # it never started
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Refused(eg.Callback):
    """Logs a value of a name that the server refuses, at one step, a note at the end of epochs; fails at a step."""

    batch_hooks_read = "logs"

    def __init__(self, fails):
        self.fails = fails

    def on_train_batch_end(self, event):
        if event.step == 4:
            event.log(TOO_LONG, 1.0)
        if event.step == self.fails:
            raise ZeroDivisionError

    def on_epoch_end(self, event):
        event.log_text("note", f"epoch {event.epoch}")


@pytest.mark.slow  # the server needs ten seconds to start
def test_a_server_has_every_record_once_but_the_one_that_it_refuses(address, tmp_path):
    def fit(fails=0):
        logger = MLflow("digits", address, directory=tmp_path, every=eg.Every(steps=2))
        trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), seed=7)
        saved = ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=5))
        callbacks = [logger, Refused(fails), saved]
        return logger, trainer.fit(X, X, batch_size=8, epochs=3, callbacks=callbacks, resume="auto", verbose=0)

    with warnings.catch_warnings(record=True, action="always") as caught, pytest.raises(ZeroDivisionError):
        fit(fails=12)
    said = [str(w.message).split() for w in caught if "MLflow: the service refuses" in str(w.message)]
    assert sum(int(words[4]) for words in said) == 2  # that of the step, and that of the epoch
    logger, history = fit()
    client = MlflowClient(address)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    steps = {name: [m.step for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
    assert steps["loss"] == [2, 6, 8, 10, 12, 14]
    assert steps["epoch/loss"] == [10, 15]
    assert run.data.metrics["epoch/loss"] == pytest.approx(history.history["loss"][-1])
    assert (run.info.status, run.data.tags["checkpoint"]) == ("FINISHED", str(tmp_path / "saved" / "step_00000015"))
    assert {"trainer/seed": "7", "fit/batch_size": "8", "data/examples": "40"}.items() <= run.data.params.items()
    assert [file.path for file in client.list_artifacts(run.info.run_id, "note")] == [
        f"note/{step:08d}.txt" for step in (5, 10, 15)
    ]
    assert logger.path.read_text().count(TOO_LONG) == 2
