"""Logs to Trackio."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from elegy.callbacks.items import Item
from elegy.lazy import require
from elegy.loggers.logger import OFTEN
from elegy.loggers.record import Record
from elegy.loggers.service import ServiceLogger
from elegy.types import Every


class Trackio(ServiceLogger):
    """Logs to Trackio, on this machine or to a Space of Hugging Face; see `ServiceLogger`.

    Args:
        project: the project.
        name: the beginning of the name of the run, which ends in eight letters and digits.
        directory: where the file of records is. Trackio's own files are where `TRACKIO_DIR` says.
        every: the interval; see `Logger`.
        **options: further arguments of `trackio.init`, such as `space_id` and `server_url`.

    Raises:
        TypeError: if `every` is not an `Every`.
        ImportError: at the beginning of the run, if Trackio is not installed (`pip install "elegy[trackio]"`).

    Example:
        >>> Trackio("digits").project
        'digits'
    """

    library = "trackio"

    def __init__(
        self,
        project: str,
        name: str = "run",
        directory: str | os.PathLike[str] = "logs",
        every: Every = OFTEN,
        **options: Any,
    ):
        super().__init__(every, directory)
        self.project, self.name, self.options = project, name, options
        self._trackio: Any = None

    def connect(self, run: str, config: Mapping[str, Any] | None) -> None:
        """Begins or continues a run."""
        trackio = require("trackio", "eg.loggers.Trackio")
        given = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False, "resume": "allow", **self.options}
        given["config"] = None if config is None else dict(config)
        self._trackio = trackio.init(self.project, name=f"{self.name}-{run}", **given)

    def send(self, values: Mapping[str, float], record: Record) -> None:
        """Sends a record."""
        self._trackio.log({**values, "epoch": record.epoch}, step=record.step)

    def send_item(self, item: Item) -> None:
        """Sends an item."""
        trackio = require("trackio", "eg.loggers.Trackio")
        if item.kind == "artifact":
            artifact = trackio.Artifact(item.name.replace("/", "."), type="file")
            (artifact.add_dir if item.value.is_dir() else artifact.add_file)(str(item.value))
            self._trackio.log_artifact(artifact)
            return

        def image(pixels: np.ndarray) -> Any:  # Trackio's images have three or four channels
            return trackio.Image(np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels)

        kinds = {"text": trackio.Markdown, "image": image, "histogram": trackio.Histogram}
        value = kinds[item.kind](item.value) if item.kind in kinds else item.value
        self._trackio.log({item.name: value}, step=item.step)

    def disconnect(self, ended: str) -> None:
        """Ends the run."""
        self._trackio.finish()
        self._trackio = None
