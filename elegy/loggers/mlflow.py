"""Logs to MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from elegy.callbacks.items import Item
from elegy.lazy import require
from elegy.loggers.logger import OFTEN
from elegy.loggers.record import Record
from elegy.loggers.service import ServiceLogger
from elegy.loggers.values import counts, flat
from elegy.types import Every

_TAG = "elegy.run"
_AT_ONCE = 100  # the limit of MLflow for the parameters of one request
_LONGEST = 6000  # its limit for the characters of a parameter


class MLflow(ServiceLogger):
    """Logs to MLflow; see `ServiceLogger`. The configuration becomes parameters, paths of checkpoints a tag.

    MLflow's names have letters, digits, and `_-. :/`: other characters, as in the pattern `*`, become `_`. A name
    that is the folder of others, as `grad_norm` of `grad_norm/kernel`, ends in `/all`, because a file store makes
    files and folders of the names.

    Args:
        experiment: the name of the experiment, which is made if it is missing.
        tracking_uri: the address of the server, or what else MLflow accepts; None for MLflow's own setting
            (`MLFLOW_TRACKING_URI`).
        name: the name of the run; None for one that MLflow chooses.
        directory: where the file of records is.
        every: the interval; see `Logger`.
        **tags: tags of the run.

    Raises:
        TypeError: if `every` is not an `Every`.
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
        self.experiment, self.tracking_uri, self.name, self.tags = experiment, tracking_uri, name, tags
        self._client: Any = None
        self._id = ""

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
        # Also for a run that an earlier attempt has created, which may have failed before its parameters.
        entities = require("mlflow.entities", "eg.loggers.MLflow")
        params = [entities.Param(_allowed(name), str(value)[:_LONGEST]) for name, value in flat(config or {}).items()]
        for start in range(0, len(params), _AT_ONCE):
            client.log_batch(self._id, params=params[start : start + _AT_ONCE])

    def send(self, values: Mapping[str, float], record: Record) -> None:
        """Sends a record."""
        entities, now = require("mlflow.entities", "eg.loggers.MLflow"), int(time.time() * 1000)
        allowed = {_allowed(name): value for name, value in values.items()}
        folders = {str(folder) for name in allowed for folder in PurePosixPath(name).parents}
        self._client.log_batch(
            self._id,
            metrics=[
                entities.Metric(f"{name}/all" if name in folders else name, value, now, record.step)
                for name, value in allowed.items()
            ],
        )

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
            path = Path(item.value)
            (client.log_artifacts if path.is_dir() else client.log_artifact)(self._id, str(path))

    def disconnect(self, ended: str) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id, {"finished": "FINISHED", "failed": "FAILED"}.get(ended, "KILLED"))
        self._client = None


def _allowed(name: str) -> str:
    """Returns a name that MLflow accepts: it refuses whole records for a character, or a part such as `..`.

    Example:
        >>> _allowed("learning_rate/*"), _allowed("/a//b[0]")
        ('learning_rate/_', 'a/b_0_')
    """
    parts = re.sub(r"[^\w.\- :/]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"
