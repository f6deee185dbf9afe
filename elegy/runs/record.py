"""What is known of a run, read from its folder."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from elegy.callbacks import History
from elegy.callbacks.monitor import best_is
from elegy.checkpoint.naming import RUN_FILE
from elegy.runs.files import kept, read_json
from elegy.runs.place import is_locked
from elegy.strict_json import as_number

_MEASURED = (
    "learning_rate",
    "grad_norm",
    "update_norm",
    "param_norm",
    "steps_per_second",
    "examples_per_second",
    "tokens_per_second",
    "tflops",
    "mfu",
    "host_memory",
    "device_memory",
    "device_memory_peak",
)
"""Names of values that monitors measure: none is better than another."""

T = TypeVar("T")

Series = tuple[list[int], list[float]]
"""Steps, and values at these steps."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run: its values, how it ended, and what it was made of.

    Args:
        name: the name of its folder.
        path: its folder; None for the record of a trainer without one.
        status: `"running"`, `"finished"`, `"interrupted"` (by a signal), `"failed"` (by an exception), or `"killed"`:
            the process ended without a word.
        step: the completed training steps.
        epoch: the completed epochs.
        records: the values in order, as `elegy.loggers.JSONLines` writes them: dicts with `type` (`"step"`, `"epoch"`
            or `"evaluation"`), `step`, `epoch`, `examples`, `seconds` and `values`.
        fits: the calls of `fit`, each with its beginning, end, status, warnings and the seconds of its parts.
        checkpoints: what each `ModelCheckpoint` of the run has kept.
        config: as `Trainer.configuration`, without versions; of the last fit.
        earlier: the configurations that it had before it was resumed with others, the oldest first.
        environment: versions, devices, the Git commit.
        parameters: path, shape and dtype of each parameter.
        started: when it began; None if that is not known.
    """

    name: str
    path: Path | None
    status: str
    step: int
    epoch: int
    records: tuple[Mapping[str, Any], ...]
    fits: tuple[Mapping[str, Any], ...] = ()
    checkpoints: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: tuple[Mapping[str, Any], ...] = ()
    started: datetime.datetime | None = None
    earlier: tuple[Mapping[str, Any], ...] = ()

    def series(self, *kinds: str) -> dict[str, Series]:
        """Returns the values of each name over the steps.

        Args:
            *kinds: of `"step"`, `"epoch"` and `"evaluation"`; none for the last two.
        """
        found: dict[str, Series] = {}
        for record in self.records:
            if record["type"] in (kinds or ("epoch", "evaluation")):
                for name, value in record["values"].items():
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(record["step"])
                    values.append(value)
        return found

    @property
    def best(self) -> dict[str, tuple[float, int]]:
        """The best value of each loss and metric over epochs and evaluations, and its step.

        The largest value is the best of names that `ModelCheckpoint` would maximise, the smallest one of others. Values
        of monitors, such as learning rates, speeds and norms, have no best, nor has `cosine_similarity`, which may be
        the loss or the metric.
        """
        found: dict[str, tuple[float, int]] = {}
        for name, (steps, values) in self.series().items():
            direction = best_is(name)
            if direction is None or name.startswith("seconds_") or name.partition("/")[0] in _MEASURED:
                continue
            finite = [(value, step) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
            if finite:
                sign = -1 if direction == "max" else 1
                found[name] = min(finite, key=lambda pair: (sign * pair[0], pair[1]))
        return found

    @property
    def seconds(self) -> float | None:
        """The seconds of all fits that have ended; None if that is not known."""
        parts = [fit["seconds"] for fit in self.fits if "seconds" in fit]
        return sum(sum(part.values()) for part in parts) if parts else None


def read(path: str | os.PathLike[str]) -> RunRecord:
    """Reads the folder of a run; it may still be running. Nothing that the folder contains is executed.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: if it is not the folder of a run.

    Example:
        >>> read("nowhere")
        Traceback (most recent call last):
        ...
        FileNotFoundError: nowhere is not the folder of a run: it has no run.json. `Trainer(run_dir=...)` makes one.
    """
    folder = Path(path)
    if not (folder / RUN_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} is not the folder of a run: it has no {RUN_FILE}. `Trainer(run_dir=...)` makes one."
        )
    run = read_json(folder / RUN_FILE)
    status = _entry(run, "status", "running")
    if status == "running" and not is_locked(folder):
        status = "killed"
    return RunRecord(
        name=folder.resolve().name,
        path=folder,
        status=status,
        step=_entry(run, "step", 0),
        epoch=_entry(run, "epoch", 0),
        records=tuple(_records(folder)),
        fits=_objects(run, "fits"),
        checkpoints=_objects(run, "checkpoints"),
        config=read_json(folder / "config.json"),
        environment=read_json(folder / "environment.json"),
        parameters=_objects(read_json(folder / "model.json"), "parameters"),
        started=_time(run.get("started")),
        earlier=tuple(map(read_json, kept(folder / "config.json"))),
    )


def find(directory: str | os.PathLike[str]) -> list[RunRecord]:
    """Reads all runs in a directory, the oldest first. Folders of runs may lie deeper, but not in one another.

    Args:
        directory: a directory with folders of runs.

    Raises:
        NotADirectoryError: if it does not exist, or is a file.
    """
    top = Path(directory)
    if not top.is_dir():
        raise NotADirectoryError(f"{top} is not a directory: pass the one that has the folders of the runs.")
    found = [read(folder) for folder in _folders(top)]
    first = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    return sorted(found, key=lambda run: (run.started or first, str(run.path)))


def of_history(history: History, name: str, step: int, epoch: int, **fields: Any) -> RunRecord:
    """Makes the record of a trainer without a folder, from the history of its last `fit`."""
    known = dict(zip(history.step, range(len(history.step)), strict=True))
    whole = {key: values for key, values in history.history.items() if len(values) == len(history.step)}
    records: list[dict[str, Any]] = [
        {"type": "epoch", "step": at, "epoch": history.epoch[i], "values": {k: v[i] for k, v in whole.items()}}
        for at, i in known.items()
    ]
    for evaluations in history.evaluations.values():
        for one in evaluations:
            values = {key: value for key, value in one.items() if key not in ("epoch", "step", "examples")}
            if one["step"] not in known or not values.keys() <= whole.keys():
                records.append({"type": "evaluation", "step": one["step"], "epoch": one["epoch"], "values": values})
    records.sort(key=lambda record: record["step"])
    return RunRecord(name, None, fields.pop("status", "finished"), step, epoch, tuple(records), **fields)


def _folders(top: Path) -> Iterable[Path]:
    if (top / RUN_FILE).is_file():
        yield top
        return
    for path in sorted(top.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _folders(path)


def _records(folder: Path) -> Iterable[dict[str, Any]]:
    """The values in the logs of a folder; a line that a crash has cut, or that is not a record, is left out."""

    def number(path: Path) -> int:
        match = re.fullmatch(r"log_(\d+)", path.stem)
        return int(match[1]) if match else 0

    for path in sorted(folder.glob("log*.jsonl"), key=number):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("type") in ("step", "epoch", "evaluation"):
                values, places = record.get("values"), (record.get("step"), record.get("epoch"))
                if isinstance(values, dict) and all(isinstance(place, int) for place in places):
                    numbers = {name: as_number(value) for name, value in values.items()}
                    yield {**record, "values": {name: v for name, v in numbers.items() if v is not None}}


def _entry(found: Mapping[str, Any], name: str, missing: T) -> T:
    """An entry of a file, or what stands for a missing one if it has another type: another program wrote the file."""
    value = found.get(name)
    return value if isinstance(value, type(missing)) else missing


def _objects(found: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    values: list[Any] = _entry(found, name, [])
    return tuple(one for one in values if isinstance(one, dict))


def _time(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
