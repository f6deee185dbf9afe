"""Names and values that MLflow refuses, with its real client and file store."""

from __future__ import annotations

import numpy as np
import pytest
from mlflow import MlflowClient

from elegy.loggers import MLflow
from elegy.loggers.logger import Record


def run_of(logger):
    client = MlflowClient(logger.tracking_uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "names"]
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_names_that_mlflow_refuses_are_changed(tmp_path):
    logger = MLflow("names", f"file:{tmp_path}/store", directory=tmp_path)
    logger.connect("r", {"groups": {"*/kernel": "adam"}, "frozen": ["a" * 50] * 1000})
    logger.send({"learning_rate/*": 0.5, "/a//b[0]/..": 2.0, "loss": float("nan")}, Record("step", 3, 0, 0, 0.0, {}))
    run = run_of(logger)
    assert {name: run.data.metrics[name] for name in ("learning_rate/_", "a/b_0_")} == {
        "learning_rate/_": 0.5,
        "a/b_0_": 2.0,
    }
    assert np.isnan(run.data.metrics["loss"])
    assert run.data.params["groups/_/kernel"] == "adam"
    assert run.data.params["frozen"].startswith("['aaa")


def test_a_file_store_takes_a_name_that_is_the_folder_of_others(tmp_path):
    logger = MLflow("names", f"file:{tmp_path}/store", directory=tmp_path)
    logger.connect("r", {})
    for step in (1, 2):
        logger.send({"grad_norm/bias": 3.0, "grad_norm": 5.0, "loss": 1.0}, Record("step", step, 0, 0, 0.0, {}))
    assert run_of(logger).data.metrics == {"grad_norm/bias": 3.0, "grad_norm/all": 5.0, "loss": 1.0}


def test_a_second_attempt_to_connect_writes_the_configuration(tmp_path, monkeypatch):
    logger = MLflow("names", f"file:{tmp_path}/store", directory=tmp_path)

    def unreachable(*args, **kwargs):
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", unreachable)
        with pytest.raises(ConnectionError):
            logger.connect("r", {"seed": 3})
    logger.connect("r", {"seed": 3})
    assert run_of(logger).data.params == {"seed": "3"}
