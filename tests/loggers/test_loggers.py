"""All loggers by one table: what they write, in `fit`, over a crash, and without their target."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import struct
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from event_files import read_records
from rich.console import Console

import elegy as eg
from elegy.callbacks import LambdaCallback, ModelCheckpoint, WeightHistogram
from elegy.loggers import CSV, JSONLines, Logger, MLflow, Rich, ServiceLogger, TensorBoard, Trackio, WandB
from elegy.loggers.png import png

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
    items: Callable[[Any], dict[str, Any]]
    running: bool = False  # at steps, it logs the running values of the epoch


def read_wandb(path):
    """Records of W&B's file: blocks of 32 KiB with records of a checksum, a length and a type, as in LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def of_wandb(logger):
    rows = []
    for path in sorted(logger.directory.glob(f"wandb/offline-run-*-{logger.run}/*.wandb")):
        for _ in range(12_000):  # another process writes the file
            records = list(read_wandb(path))
            if records and records[-1].HasField("exit"):
                break
            time.sleep(0.05)
        for record in records:
            numbers = [item for item in record.history.item if len(item.nested_key) == 1]
            row = {item.nested_key[0]: json.loads(item.value_json) for item in numbers}
            rows += [(row["_step"], row)] if row else []
    return of_rows(rows)


def of_rows(rows):
    """Records of rows in which a step and an epoch may have been joined."""
    records = []
    for step, row in rows:
        ends = {name.removeprefix("epoch/"): v for name, v in row.items() if name.startswith(("epoch/", "val_"))}
        own = {name: v for name, v in row.items() if not name.startswith(("epoch", "val_", "_"))}
        own = {name: value for name, value in own.items() if isinstance(value, (int, float))}
        records += [("step", step, own)] if own else []
        kind = "epoch" if any(name.startswith("epoch/") for name in row) else "evaluation"
        records += [(kind, step, ends)] if ends else []
    return records


def of_mlflow(logger):
    from mlflow import MlflowClient

    client = MlflowClient(logger.tracking_uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == logger.experiment]
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`elegy.run` = '{logger.run}'")
    assert run.info.status == "FINISHED"
    rows = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        assert len({metric.step for metric in history}) == len(history)
        for metric in history:
            rows.setdefault(metric.step, {})[name] = metric.value
    return of_rows(sorted(rows.items()))


def of_trackio(logger):
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs(logger.project, f"{logger.name}-{logger.run}")
    return of_rows([(row.pop("step"), {name: v for name, v in row.items() if name != "timestamp"}) for row in rows])


def project_of(path):
    return f"p{abs(hash(str(path)))}"


def of_csv(logger):
    """Records of a table, in which all that is logged at a step is one row."""
    records = []
    with logger.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["step"] for row in rows}) == len(rows)
    for row in rows:
        step = int(row["step"])
        values = {name: float(v) for name, v in row.items() if v and name not in ("epoch", "step")}
        records += [("step", step, values)] if EVERY.due(step - 1, step) else []
        kind = "epoch" if step % 5 == 0 else "evaluation"
        records += [(kind, step, values)] if "val_loss" in values else []
    return records


def of_board(logger):
    """Records of event files; the start of a session hides what earlier ones have from its step on."""
    rows = {}
    for part, begin in (("train", ""), ("validation", "val_")):
        for record in read_records(logger.path / part):
            if record.HasField("session_log"):
                rows = {at: values for at, values in rows.items() if at[0] < record.step or at[1] != part}
            for value in record.summary.value:
                kind, _, name = value.tag.partition("_")
                if kind in ("batch", "epoch") and value.HasField("simple_value"):
                    values = rows.setdefault((record.step, part, kind), {})
                    assert begin + name not in values
                    values[begin + name] = value.simple_value
    records = []
    for step in sorted({at[0] for at in rows}):
        ends = {**rows.get((step, "train", "epoch"), {}), **rows.get((step, "validation", "epoch"), {})}
        own = rows.get((step, "train", "batch"))
        records += [("step", step, own)] if own else []
        records += [("epoch" if "loss" in ends else "evaluation", step, ends)] if ends else []
    return records


def in_files(logger, *kinds):
    """What `Items` logs at step 5, from the files beside a log."""
    read = {
        "text": lambda path: path.with_suffix(".txt").read_text(),
        "image": lambda path: png_pixels(path.with_suffix(".png").read_bytes()),
        "figure": lambda path: plt.imread(path.with_suffix(".png")).ndim,
        "histogram": lambda path: sum(json.loads(path.with_suffix(".json").read_text())["counts"]),
        "artifact": lambda path: (path / "notes.txt").read_text(),
    }
    return {kind: read[kind](logger.items / NAMES[kind] / "00000005") for kind in kinds or read}


def png_pixels(data):
    return np.round(plt.imread(io.BytesIO(data), format="png") * 255).max()


def csv_items(logger):
    about = json.loads(logger.path.with_name(logger.path.name + ".json").read_text())
    first = about["checkpoints"][0]
    return {**in_files(logger), "seed": about["configuration"]["trainer"]["seed"], "checkpoint": first["path"]}


def json_items(logger):
    lines = [json.loads(line) for line in logger.path.read_text().splitlines()]
    found = {line["type"]: line for line in reversed(lines) if line.get("step", 5) == 5}
    return {
        **in_files(logger, "image", "figure", "artifact"),
        "text": found["text"]["text"],
        "histogram": sum(found["histogram"]["counts"]),
        "seed": found["config"]["trainer"]["seed"],
        "checkpoint": found["checkpoint"]["path"],
    }


def board_items(logger):
    values = {}
    for record in read_records(logger.path / "train"):
        values.update({value.tag: value for value in record.summary.value if record.step in (0, 5)})
    plugin = values["_hparams_/session_start_info"].metadata.plugin_data.content
    return {
        **in_files(logger, "artifact"),
        "text": values["note/text_summary"].tensor.string_val[0].decode(),
        "image": png_pixels(values["image"].image.encoded_image_string),
        "figure": plt.imread(io.BytesIO(values["figure"].image.encoded_image_string), format="png").ndim,
        "histogram": values["values"].histo.num,
        "seed": 7 if b"trainer/seed" in plugin else None,
        "checkpoint": values["checkpoint/text_summary"].tensor.string_val[0].decode(),
    }


def mlflow_items(logger):
    from mlflow import MlflowClient

    client = MlflowClient(logger.tracking_uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == logger.experiment]
    (run,) = client.search_runs([experiment.experiment_id])
    place = Path(client.download_artifacts(run.info.run_id, ""))
    return {
        "text": (place / "note" / "00000005.txt").read_text(),
        "image": png_pixels((place / "image" / "00000005.png").read_bytes()),
        "figure": plt.imread(place / "figure" / "00000005.png").ndim,
        "histogram": sum(json.loads((place / "values" / "00000005.json").read_text())["counts"]),
        "artifact": next(place.rglob("notes.txt")).read_text(),
        "seed": int(run.data.params["trainer/seed"]),
        "checkpoint": run.data.tags["checkpoint"],
    }


def wandb_items(logger):
    (path,) = logger.directory.glob(f"wandb/offline-run-*-{logger.run}/*.wandb")
    of_wandb(logger)  # waits for the end of the file
    media, found = path.parent / "files", {}
    for record in read_wandb(path):
        for item in record.history.item:
            found.setdefault("/".join(item.nested_key) or item.key, json.loads(item.value_json))
        for item in record.summary.update:
            found["summary/" + ("/".join(item.nested_key) or item.key)] = json.loads(item.value_json)
        for item in (*record.config.update, *record.run.config.update):
            found["config/" + ("/".join(item.nested_key) or item.key)] = json.loads(item.value_json)
        for entry in record.artifact.manifest.contents:
            found["artifact"] = Path(entry.local_path).read_text()
    return {
        "text": re.search("<pre>(.*)</pre>", (media / found["note/path"]).read_text())[1],
        "image": png_pixels((media / found["image/path"]).read_bytes()),
        "figure": plt.imread(media / found["figure/path"]).ndim,
        "histogram": sum(found["values/values"]),
        "artifact": found["artifact"],
        "seed": found["config/trainer"]["seed"],
        "checkpoint": found["summary/checkpoint"],
    }


def trackio_items(logger):
    from trackio.sqlite_storage import SQLiteStorage

    run = f"{logger.name}-{logger.run}"
    found = {}
    for row in SQLiteStorage.get_logs(logger.project, run):
        found = {**row, **found} if row["step"] in (0, 5) else found
    media = Path(os.environ["TRACKIO_DIR"])
    pixels = {name: plt.imread(next(media.rglob(Path(found[name]["file_path"]).name))) for name in ("image", "figure")}
    return {
        "text": found["note"]["_value"],
        "image": np.round(pixels["image"] * 255)[0, 0, 0],
        "figure": pixels["figure"].ndim,
        "histogram": sum(found["values"]["values"]),
        "artifact": next(media.glob(f"artifacts/{logger.project}/blobs/*/*/*")).read_text(),
        "seed": SQLiteStorage.get_run_config(logger.project, run)["trainer"]["seed"],
        "checkpoint": found["checkpoint"],
    }


NAMES = {"text": "note", "image": "image", "figure": "figure", "histogram": "values", "artifact": "notes.txt"}
KINDS = {
    "csv": Kind(lambda path: CSV(path / "log.csv", every=EVERY), of_csv, csv_items, running=True),
    "board": Kind(lambda path: TensorBoard(path / "board", EVERY), of_board, board_items, running=True),
    "wandb": Kind(lambda path: WandB("digits", dir=path, every=EVERY, mode="offline"), of_wandb, wandb_items),
    "mlflow": Kind(
        lambda path: MLflow("digits", f"file:{path}/store", directory=path, every=EVERY), of_mlflow, mlflow_items
    ),
    "trackio": Kind(lambda path: Trackio(project_of(path), directory=path, every=EVERY), of_trackio, trackio_items),
    "json": Kind(lambda path: JSONLines(path / "log.jsonl", EVERY), of_json, json_items),
}
# Weights & Biases and MLflow start slowly; Trackio runs the same lines of the base class.
SLOW = ("wandb", "mlflow")
each = pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=k, marks=pytest.mark.slow if k in SLOW else ()) for k, kind in KINDS.items()]
)


class Items(eg.Callback):
    """Logs one item of each kind at the end of each epoch, and a number at each step."""

    def __init__(self, path, grey=0):
        self.file, self.grey = path / "notes.txt", grey
        self.file.write_text("notes")

    batch_hooks_read = "logs"

    def on_train_batch_end(self, event):
        event.log("twice", 2.0 * event.step)

    def on_epoch_end(self, event):
        event.log_text("note", f"epoch {event.epoch}")
        event.log_image("image", np.full((4, 4, 3), event.epoch + self.grey, np.uint8))
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
    """The loss of each step, and its running value in the epoch."""

    batch_hooks_read = "logs"
    step_values = ("logs",)

    def __init__(self):
        self.losses, self.running = {}, {}

    def on_train_batch_end(self, event):
        self.losses[event.step] = event.step_logs["loss"]
        self.running[event.step] = np.mean([self.losses[k] for k in range(event.step - event.batch, event.step + 1)])


@each
def test_records_are_those_of_the_steps_and_the_epochs(tmp_path, kind):
    logger, own = kind.make(tmp_path), Own()
    with warnings.catch_warnings(record=True, action="always") as caught:
        history = fit([logger, own, Items(tmp_path)])
    assert [str(w.message) for w in caught if "left out" in str(w.message)] == []
    records = kind.records(logger)
    assert [(k, step) for k, step, _ in records if k == "step"] == [("step", step) for step in range(2, 21, 2)]
    assert [(k, step) for k, step, _ in records if k == "epoch"] == [("epoch", step) for step in (5, 10, 15, 20)]
    for k, step, values in records:
        if k == "step":
            assert values["loss"] == pytest.approx((own.running if kind.running else own.losses)[step], rel=1e-5)
            assert values["twice"] == 2 * step
        else:
            wanted = {name: series[step // 5 - 1] for name, series in history.items()}
            assert {name: values[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


@each
def test_items_configuration_and_checkpoints_are_there(tmp_path, kind):
    logger, saved = kind.make(tmp_path), ModelCheckpoint(tmp_path / "saved", async_save=False)
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1), seed=7)
    trainer.fit(X, X, batch_size=8, epochs=1, callbacks=[Items(tmp_path, 3), logger, saved], verbose=0)
    assert kind.items(logger) == {
        "text": "epoch 0",
        "image": 3,
        "figure": 3,
        "histogram": 10,
        "artifact": "notes",
        "seed": 7,
        "checkpoint": str(tmp_path / "saved" / "step_00000005"),
    }


@each
def test_a_resumed_run_has_each_record_once(tmp_path, kind):
    def callbacks(path):
        return [kind.make(path), ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=5))]

    whole = kind.make(tmp_path / "whole")
    fit([whole])
    with pytest.raises(ZeroDivisionError):
        fit([*callbacks(tmp_path / "cut"), Crash(11)], resume="auto")
    cut = callbacks(tmp_path / "cut")
    fit(cut, resume="auto")
    assert kind.records(cut[0]) == kind.records(whole)


@each
def test_evaluations_inside_of_epochs_have_records_once(tmp_path, kind):
    options = {"validation_freq": eg.Every(steps=4)}

    def callbacks(path):
        return [kind.make(path), ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=4))]

    class Broken(eg.Callback):
        def on_test_begin(self, event):
            if event.step == 8:
                raise ZeroDivisionError

    whole = kind.make(tmp_path / "whole")
    fit([whole], **options)
    assert [step for k, step, _ in kind.records(whole) if k == "evaluation"] == [4, 8, 12, 16]
    with pytest.raises(ZeroDivisionError):
        fit([*callbacks(tmp_path / "cut"), Crash(8)], resume="auto", **options)
    cut = callbacks(tmp_path / "cut")
    fit(cut, resume="auto", **options)
    assert kind.records(cut[0]) == kind.records(whole)


@each
def test_a_second_fit_goes_on_in_the_same_run_and_another_trainer_does_not(tmp_path, kind):
    logger = kind.make(tmp_path)
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    for _ in range(2):
        trainer.fit(X, X, batch_size=8, callbacks=[logger], validation_data=(X, X), verbose=0)
    assert [step for k, step, _ in kind.records(logger) if k == "epoch"] == [5, 10]
    run = logger.run
    other = kind.make(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        fit([other], epochs=1)
    assert other.run != run
    assert [step for k, step, _ in kind.records(other) if k == "epoch"] == [5]
    assert [step for k, step, _ in kind.records(logger) if k == "epoch"] == [5, 10]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: MLflow(tracking_uri="http://127.0.0.1:9", directory=path, every=EVERY),
            "MLflow cannot",
        ),
        (lambda path: Trackio("p", server_url="http://127.0.0.1:9", directory=path, every=EVERY), "Trackio cannot"),
    ],
)
def test_training_goes_on_without_the_service_and_the_records_are_kept(tmp_path, make, message):
    logger, whole = make(tmp_path), JSONLines(tmp_path / "whole.jsonl", EVERY)
    logger.patience = 5.0
    with warnings.catch_warnings(record=True, action="always") as caught:
        fit([logger, whole])
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    assert all(text.startswith(message) for text in said)
    assert "14 records were not sent" in said[-1]
    assert of_json(logger) == of_json(whole)


class Flaky(ServiceLogger):
    """A service of this test, which is out of reach until it is told otherwise."""

    library, patience = "json", 0.01
    reachable, rows, items, ends = False, [], [], []

    def connect(self, run, config):
        if not self.reachable:
            raise ConnectionError("no route to the service")

    def send(self, values, record):
        self.connect(None, None)
        self.rows.append((record.kind, record.step, dict(record.values)))

    def send_item(self, item):
        self.items.append((item.kind, item.name, item.step))

    def disconnect(self, ended):
        self.connect(None, None)
        self.ends.append(ended)


@pytest.mark.parametrize("returns_at", [7, None])
def test_records_are_sent_when_the_service_is_back_or_by_the_run_that_resumes(tmp_path, monkeypatch, returns_at):
    monkeypatch.setattr(Flaky, "rows", [])
    monkeypatch.setattr(Flaky, "ends", [])
    monkeypatch.setattr(Flaky, "reachable", False)
    whole = JSONLines(tmp_path / "whole.jsonl", EVERY)

    def callbacks(path):
        return [Flaky(EVERY, path), ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=5))]

    def back(event):
        if event.step == returns_at:
            Flaky.reachable = True

    fit([whole])
    with warnings.catch_warnings(record=True, action="always") as caught, pytest.raises(ZeroDivisionError):
        fit([*callbacks(tmp_path), LambdaCallback(on_train_batch_begin=back), Crash(11)], resume="auto")
    assert any("a run that resumes" in str(w.message) for w in caught) is (returns_at is None)
    Flaky.reachable = True
    fit(callbacks(tmp_path), resume="auto")
    assert Flaky.rows == of_json(whole)
    assert Flaky.ends == ["failed", "finished"][returns_at is None :]


def test_items_are_sent_once_by_a_run_that_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(Flaky, "items", [])
    monkeypatch.setattr(Flaky, "reachable", True)

    def callbacks():
        saved = ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=4))
        return [Flaky(eg.Every(epochs=1), tmp_path), Items(tmp_path), saved]

    with pytest.raises(ZeroDivisionError):
        fit([*callbacks(), Crash(11)], resume="auto")
    fit(callbacks(), resume="auto")
    items = [item for item in Flaky.items if item[0] != "checkpoint"]
    names = [("text", "note"), ("image", "image"), ("image", "figure"), ("histogram", "values")]
    wanted = [(*name, step) for step in (5, 10, 15, 20) for name in [*names, ("artifact", "notes.txt")]]
    assert items == wanted


def test_what_a_crash_cut_is_removed_and_sent_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(Flaky, "rows", [])
    monkeypatch.setattr(Flaky, "reachable", False)
    saved = ModelCheckpoint(tmp_path / "saved", every=eg.Every(steps=5))
    first = Flaky(EVERY, tmp_path)
    with warnings.catch_warnings(action="ignore"):
        fit([first, saved], epochs=2)
    lines = first.path.read_text().splitlines(keepends=True)
    first.path.write_text("".join(lines) + lines[-1][:9])  # a record after the last checkpoint
    logger, Flaky.reachable = Flaky(EVERY, tmp_path), True
    fit([logger, ModelCheckpoint(tmp_path / "saved")], resume="auto")
    assert [step for kind, step, _ in of_json(logger) if kind == "epoch"] == [5, 10, 15, 20]
    assert Flaky.rows == of_json(logger)


def test_trackio_gets_images_of_one_channel(tmp_path):
    from trackio.sqlite_storage import SQLiteStorage

    gray = np.arange(16, dtype=np.uint8).reshape(4, 4)
    logger = Trackio(project_of(tmp_path), directory=tmp_path, every=eg.Every(epochs=1))
    fit([logger, LambdaCallback(on_epoch_end=lambda event: event.log_image("gray", gray))], epochs=1)
    rows = SQLiteStorage.get_logs(logger.project, f"{logger.name}-{logger.run}")
    (name,) = [Path(row["gray"]["file_path"]).name for row in rows if "gray" in row]
    pixels = plt.imread(next(Path(os.environ["TRACKIO_DIR"]).rglob(name)))
    np.testing.assert_array_equal(np.round(pixels[..., :3] * 255), np.stack([gray] * 3, axis=-1))


@pytest.mark.parametrize(("cls", "extra"), [(MLflow, "mlflow"), (Trackio, "trackio"), (WandB, "wandb")])
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, cls, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ImportError, match=rf'eg.loggers.{cls.__name__} needs .* `pip install "elegy\[{extra}\]"`'):
        fit([cls("digits", every=EVERY)])
    with pytest.raises(TypeError, match="takes no 'id'"):
        WandB("digits", id="mine")


def test_the_configuration_has_the_arguments_of_the_trainer():
    options = {"precision": "mixed_bfloat16", "averaging": eg.EMA(0.9), "freeze": "bias", "accumulate": 2, "seed": 3}
    module, loss, tx = nn.Dense(1), eg.losses.MeanSquaredError(), optax.inject_hyperparams(optax.adam)(0.1)
    trainer = eg.Trainer(module, loss, eg.metrics.MeanAbsoluteError(), tx, nonfinite="skip", **options)
    trainer.init_on_batch(X[:8], X[:8])
    found = trainer.configuration()["trainer"]
    json.dumps(trainer.configuration())
    assert (found["seed"], found["accumulate"], found["nonfinite"]) == (3, 2, "skip")
    assert (found["losses"], found["metrics"]) == (["mean_squared_error"], ["mean_absolute_error"])
    assert found["frozen"] == ["bias"]
    assert found["optimizer"] == ["InjectStatefulHyperparams", "ScaleByAdam", "Empty"]  # no place of a frozen moment
    assert "bfloat16" in found["precision"]
    assert "decay=0.9" in found["averaging"]


def test_json_lines_hold_the_configuration_items_and_checkpoints(tmp_path):
    logger = JSONLines(tmp_path / "log.jsonl", eg.Every(epochs=1))
    saved = ModelCheckpoint(tmp_path / "saved", async_save=False)
    start = LambdaCallback(on_train_begin=lambda event: event.log_text("start", "now"))
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


def test_tensorboard_has_items_and_hyperparameters(tmp_path):
    board = TensorBoard(tmp_path / "logs")
    start = LambdaCallback(
        on_train_begin=lambda event: event.log_text("start", "now"),
        on_test_end=lambda event: event.log_text("sample", "seen"),
    )
    fit([start, board, Items(tmp_path), WeightHistogram()], epochs=2)
    found = {}
    for record in read_records(tmp_path / "logs" / "train"):
        for value in record.summary.value:
            found.setdefault(value.tag, []).append((record.step, value))
    for name in ("image", "figure", "note/text_summary", "values", "params/kernel"):
        assert [step for step, _ in found[name]] == [5, 10], name
    assert [step for step, _ in found["start/text_summary"]] == [0]
    image = found["image"][1][1].image
    pixels = plt.imread(io.BytesIO(image.encoded_image_string), format="png")
    np.testing.assert_array_equal(np.round(pixels * 255), np.full((4, 4, 3), 1))
    assert found["values"][0][1].histo.num == 10
    (_, hyperparameters) = found["_hparams_/session_start_info"][0]
    assert b"fit/batch_size" in hyperparameters.metadata.plugin_data.content
    (record,) = [r for r in read_records(tmp_path / "logs" / "validation") if r.summary.value and r.step == 5][:1]
    assert record.summary.value[0].tag == "sample/text_summary"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_encoded_as_matplotlib_reads_them(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    read = np.round(plt.imread(io.BytesIO(png(image)), format="png") * 255)
    np.testing.assert_array_equal(read.reshape(5, 7, channels), image)


def test_the_terminal_has_the_last_and_the_best_values():
    console = Console(file=io.StringIO(), width=100)
    texts = LambdaCallback(on_train_end=lambda event: event.log_text("done", "[bold]"))
    history = fit([Rich(eg.Every(steps=5), console), texts])
    shown = console.file.getvalue()
    row = next(line for line in shown.splitlines() if " val_loss " in line)
    last, best = history["val_loss"][-1], min(history["val_loss"])
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["val_loss", "", f"{last:.4g}", f"{best:.4g}"]
    assert "done: [bold]" in shown
    assert "epoch 4, step 20" in shown


def test_the_checkpoint_of_a_run_that_stops_is_logged_before_the_log_closes(tmp_path):
    def stop(event):
        event.trainer.stop_training = event.step == 7

    logger, saved = JSONLines(tmp_path / "log.jsonl", EVERY), ModelCheckpoint(tmp_path / "saved")
    fit([logger, LambdaCallback(on_train_batch_end=stop), saved])
    last = json.loads(logger.path.read_text().splitlines()[-1])
    assert (last["type"], last["path"]) == ("checkpoint", str(tmp_path / "saved" / "step_00000007"))
