"""Logs to MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from elegy.callbacks.items import Item
from elegy.lazy import require
from elegy.loggers.logger import OFTEN
from elegy.loggers.mlflow_names import checked_tags, metrics, parameters
from elegy.loggers.record import Record
from elegy.loggers.service import ServiceLogger
from elegy.loggers.values import counts
from elegy.types import Every

_TAG = "elegy.run"  # of a run in MLflow: its name here


class MLflow(ServiceLogger):
    """Logs to MLflow; see `ServiceLogger`. The configuration becomes parameters, paths of checkpoints a tag.

    MLflow's names have letters, digits, and `_-. :/`: other characters become `_`. A name that is the folder of others,
    as `grad_norm` of `grad_norm/kernel`, ends in `/all`, because a file store makes files and folders of the names.

    Args:
        experiment: the name of the experiment, which is made if it is missing.
        tracking_uri: the address of the server; None for MLflow's own setting (`MLFLOW_TRACKING_URI`).
        name: the name of the run; None for one that MLflow chooses.
        directory: where the file of records is.
        every: the interval; see `Logger`.
        **tags: tags of the run; a TypeError, if one is named as an argument of other libraries is (`run_name`).

    Raises:
        ImportError: at the beginning of the run, if MLflow is not installed (`pip install "elegy[mlflow]"`).

    Example:
        >>> MLflow("digits", tracking_uri="http://localhost:5000").experiment
        'digits'
    """

    library = "mlflow"

    def __init__(
        self,
        experiment: str = "Default",
        tracking_uri: str | None = None,
        name: str | None = None,
        directory: str | os.PathLike[str] = "logs",
        every: Every = OFTEN,
        **tags: str,
    ):
        super().__init__(every, directory)
        self.experiment, self.tracking_uri, self.name, self.tags = experiment, tracking_uri, name, checked_tags(tags)
        self._client: Any = None  # a client, from `connect` to `disconnect`

    def connect(self, run: str, config: Mapping[str, Any] | None) -> None:
        """Begins or continues a run."""
        self._client = client = require("mlflow", "eg.loggers.MLflow").MlflowClient(self.tracking_uri)
        found = client.get_experiment_by_name(self.experiment)
        experiment = client.create_experiment(self.experiment) if found is None else found.experiment_id
        runs = client.search_runs([experiment], f"tags.`{_TAG}` = '{run}'", max_results=1)
        if runs:
            self._id = runs[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            self._id = client.create_run(experiment, run_name=self.name, tags={**self.tags, _TAG: run}).info.run_id
        entities = require("mlflow.entities", "eg.loggers.MLflow")
        for params in parameters(config or {}):
            client.log_batch(self._id, params=[entities.Param(*param) for param in params])

    def send(self, values: Mapping[str, float], record: Record) -> None:
        """Sends a record."""
        metric, at = require("mlflow.entities", "eg.loggers.MLflow").Metric, (int(time.time() * 1000), record.step)
        self._client.log_batch(self._id, metrics=[metric(*one, *at) for one in metrics(values).items()])

    def refuses(self, error: Exception) -> bool:
        """True for an answer that the request is wrong."""
        return getattr(error, "get_http_status_code", int)() == 400 or super().refuses(error)

    def send_item(self, item: Item) -> None:
        """Sends an item."""
        client, name = self._client, f"{item.name}/{item.step:08d}"
        if item.kind == "checkpoint":
            client.set_tag(self._id, "checkpoint", item.value)
        elif item.kind == "text":
            client.log_text(self._id, item.value, f"{name}.txt")
        elif item.kind == "image":
            client.log_image(self._id, item.value, artifact_file=f"{name}.png")
        elif item.kind == "histogram":
            client.log_dict(self._id, counts(item.value), f"{name}.json")
        else:
            (client.log_artifacts if item.value.is_dir() else client.log_artifact)(self._id, str(item.value))

    def disconnect(self, ended: str) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id, {"finished": "FINISHED", "failed": "FAILED"}.get(ended, "KILLED"))
        self._client = None
