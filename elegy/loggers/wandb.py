"""Logs to Weights & Biases."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Mapping
from typing import Any

from elegy.callbacks.items import Item
from elegy.lazy import require
from elegy.loggers.logger import OFTEN
from elegy.loggers.record import Record
from elegy.loggers.service import ServiceLogger
from elegy.types import Every


class WandB(ServiceLogger):
    """Logs to Weights & Biases; see `ServiceLogger`. The horizontal axis counts completed training steps.

    Files become artifacts, and paths of checkpoints a value of the summary.

    Args:
        project: the project.
        name: the name of the run that the website shows; None for one that it chooses.
        dir: where wandb keeps its files, and this logger its file of records.
        every: the interval; see `Logger`.
        **options: further arguments of `wandb.init`, such as `entity`, `group`, `tags` and `mode="offline"`.

    Raises:
        TypeError: if `every` is not an `Every`, or `id` or `resume` is given: the logger chooses them.
        ImportError: at the beginning of the run, if wandb is not installed (`pip install "elegy[wandb]"`).

    Example:
        >>> WandB("digits", name="first", mode="offline").project
        'digits'
    """

    library = "wandb"

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        dir: str | os.PathLike[str] = "logs",
        every: Every = OFTEN,
        **options: Any,
    ):
        super().__init__(every, dir)
        if taken := {"id", "resume", "config"} & options.keys():
            raise TypeError(
                f"WandB(...) takes no {min(taken)!r}: a run that resumes from a checkpoint continues its run."
            )
        self.project, self.name, self.options = project, name, options
        self._wandb: Any = None

    def connect(self, run: str, config: Mapping[str, Any] | None) -> None:
        """Begins or continues a run."""
        wandb = require("wandb", "eg.loggers.WandB")
        if config is None:
            time.sleep(1)  # wandb names directories by the second, and would write to that of the run before
        settings = wandb.Settings(silent=True, console="off")
        given = {"project": self.project, "name": self.name, "settings": settings, **self.options}
        self._wandb = wandb.init(id=run, resume="allow", dir=str(self.directory), config=config, **given)

    def send(self, values: Mapping[str, float], record: Record) -> None:
        """Sends a record."""
        self._wandb.log({**values, "epoch": record.epoch}, step=record.step)

    def send_item(self, item: Item) -> None:
        """Sends an item."""
        wandb = require("wandb", "eg.loggers.WandB")
        if item.kind == "checkpoint":
            self._wandb.summary["checkpoint"] = item.value
        elif item.kind == "artifact":
            artifact = wandb.Artifact(item.name.replace("/", "."), type="file")
            (artifact.add_dir if item.value.is_dir() else artifact.add_file)(str(item.value))
            self._wandb.log_artifact(artifact)
        else:
            kinds = {"text": wandb.Html, "image": wandb.Image, "histogram": wandb.Histogram}
            value = f"<pre>{html.escape(item.value)}</pre>" if item.kind == "text" else item.value
            self._wandb.log({item.name: kinds[item.kind](value)}, step=item.step)

    def disconnect(self, ended: str) -> None:
        """Ends the run."""
        self._wandb.finish(exit_code=int(ended == "failed"))
        self._wandb = None
