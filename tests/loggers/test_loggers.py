"""All loggers by one table: what they write, in `fit`, over a crash, and without their target."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import matplotlib.figure
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import LambdaCallback, ModelCheckpoint
from elegy.loggers import JSONLines, Logger

X = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
EVERY = eg.Every(steps=2)


def of_json(logger):
    entries = [json.loads(line) for line in logger.path.read_text().splitlines()]
    return [(e["type"], e["step"], e["values"]) for e in entries if e["type"] in ("step", "epoch", "evaluation")]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a logger is made, and how its records are read: `(kind, step, values)` in order."""

    make: Callable[..., Logger]
    records: Callable[[Any], list[tuple[str, int, dict[str, float]]]]
    lacks: tuple[str, ...] = ()


KINDS = {
    "json": Kind(lambda path: JSONLines(path / "log.jsonl", EVERY), of_json, ("images", "figures", "files")),
}
each = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class Items(eg.Callback):
    """Logs one item of each kind at the end of each epoch, and a number at each step."""

    def __init__(self, path):
        self.file = path / "notes.txt"
        self.file.write_text("notes")

    batch_hooks_read = "logs"

    def on_train_batch_end(self, event):
        event.log("twice", 2.0 * event.step)

    def on_epoch_end(self, event):
        event.log_text("note", f"epoch {event.epoch}")
        event.log_image("image", np.full((4, 4, 3), event.epoch, np.uint8))
        figure = matplotlib.figure.Figure((1, 1))
        figure.add_subplot().plot([1, 2])
        event.log_figure("figure", figure)
        event.log_histogram("values", np.arange(10.0))
        event.log_artifact(self.file)


class Crash(eg.Callback):
    batch_hooks_read = "logs"

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, event):
        if event.step == self.step:
            raise ZeroDivisionError


def fit(callbacks, epochs=4, **options):
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    options = {"batch_size": 8, "validation_data": (X, X), "verbose": 0, **options}
    return trainer.fit(X, X, epochs=epochs, callbacks=callbacks, **options).history


class Own(eg.Callback):
    """The loss of each step, by hand: from the parameters before it."""

    batch_hooks_read = "logs"
    step_values = ("logs",)

    def __init__(self):
        self.losses = {}

    def on_train_batch_end(self, event):
        self.losses[event.step] = event.step_logs["loss"]


@each
def test_records_are_those_of_the_steps_and_the_epochs(tmp_path, kind):
    logger, own = kind.make(tmp_path), Own()
    with pytest.warns(UserWarning, match="they are left out") as caught:  # once for each kind
        history = fit([logger, own, Items(tmp_path)])
    said = [str(w.message) for w in caught if "left out" in str(w.message)]
    assert [what for what in kind.lacks if not any(what in text for text in said)] == []
    assert len(said) == len(kind.lacks)
    records = kind.records(logger)
    assert [(k, step) for k, step, _ in records if k == "step"] == [("step", step) for step in range(2, 21, 2)]
    assert [(k, step) for k, step, _ in records if k == "epoch"] == [("epoch", step) for step in (5, 10, 15, 20)]
    for k, step, values in records:
        if k == "step":
            assert values["loss"] == pytest.approx(own.losses[step], rel=1e-6)
            assert values["twice"] == 2 * step
        else:
            wanted = {name: series[step // 5 - 1] for name, series in history.items()}
            assert {name: values[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


@each
@pytest.mark.parametrize("crash", [7, 11, 15])
def test_a_resumed_run_has_each_record_once(tmp_path, kind, crash):
    def callbacks(path):
        return [kind.make(path), ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=5))]

    whole = kind.make(tmp_path / "whole")
    fit([whole])
    with pytest.raises(ZeroDivisionError):
        fit([*callbacks(tmp_path / "cut"), Crash(crash)], resume="auto")
    cut = callbacks(tmp_path / "cut")
    fit(cut, resume="auto")
    assert kind.records(cut[0]) == kind.records(whole)


@each
@pytest.mark.parametrize("crash", [8, 13])
def test_evaluations_inside_of_epochs_have_records_once(tmp_path, kind, crash):
    options = {"validation_freq": eg.Every(steps=4)}

    def callbacks(path):
        return [kind.make(path), ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=4))]

    class Broken(eg.Callback):
        def on_test_begin(self, event):
            if event.step == crash:
                raise ZeroDivisionError

    whole = kind.make(tmp_path / "whole")
    fit([whole], **options)
    assert [step for k, step, _ in kind.records(whole) if k == "evaluation"] == [4, 8, 12, 16]
    with pytest.raises(ZeroDivisionError):
        fit([*callbacks(tmp_path / "cut"), Crash(crash), Broken()], resume="auto", **options)
    cut = callbacks(tmp_path / "cut")
    fit(cut, resume="auto", **options)
    assert kind.records(cut[0]) == kind.records(whole)


@each
def test_a_second_fit_goes_on_in_the_same_run_and_another_trainer_does_not(tmp_path, kind):
    logger = kind.make(tmp_path)
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    for _ in range(2):
        trainer.fit(X, X, batch_size=8, callbacks=[logger], verbose=0)
    assert [step for k, step, _ in kind.records(logger) if k == "epoch"] == [5, 10]
    run = logger.run
    other = kind.make(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        fit([other], epochs=1, validation_data=None)
    assert other.run != run
    assert [step for k, step, _ in kind.records(other) if k == "epoch"] == [5]
    assert [step for k, step, _ in kind.records(logger) if k == "epoch"] == [5, 10]


def test_json_lines_hold_the_configuration_items_and_checkpoints(tmp_path):
    logger = JSONLines(tmp_path / "log.jsonl", eg.Every(epochs=1))
    saved = ModelCheckpoint(tmp_path / "saved", async_save=False)
    start = LambdaCallback(on_train_begin=lambda event: event.log_text("start", "now"))
    with pytest.warns(UserWarning, match="left out"):
        fit([start, logger, Items(tmp_path), saved], epochs=1)
    entries = [json.loads(line) for line in logger.path.read_text().splitlines()]
    assert [entry["type"] for entry in entries] == ["config", "text", "text", "histogram", "epoch", "checkpoint"]
    config, start, note, histogram, epoch, checkpoint = entries
    assert config["trainer"]["module"] == "LinenModule(Dense)"
    assert config["trainer"]["parameters"] == 2
    assert config["trainer"]["optimizer"] == ["ScaleByAdam", "Empty"]
    assert (config["fit"]["batch_size"], config["fit"]["epochs"]) == (8, 1)
    assert config["data"] == {
        "examples": 40,
        "batch_size": 8,
        "steps_per_epoch": 5,
        "evaluations": {"val": {"every": "Every(epochs=1)", "steps": 5}},
    }
    assert {"jax", "python", "device", "git_commit"} <= config["versions"].keys()
    assert (start["text"], note["text"], epoch["step"]) == ("now", "epoch 0", 5)
    assert (sum(histogram["counts"]), histogram["edges"][0], histogram["edges"][-1]) == (10, 0, 9)
    assert checkpoint["path"] == str(tmp_path / "saved" / "step_00000005")
