"""The order in which a logger writes records and items."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path

import flax.linen as nn
import numpy as np
import optax
import pytest
from fake_run import run

import elegy as eg
from elegy import loggers
from elegy.callbacks import Event, LazyLogs
from elegy.callbacks.items import Item
from elegy.loggers import Logger


class Order(Logger):
    def __init__(self):
        super().__init__(eg.Every(steps=1))
        self.written = []

    def log_scalars(self, record):
        self.written.append(("step", record.step))

    def log_text(self, item):
        self.written.append(("text", item.step))


def test_an_item_is_written_after_the_records_before_it_while_the_device_is_behind():
    logger = Order()
    logger.meet([logger])
    logger.on_train_begin(Event(None, "train", step=0, epoch=0))
    logger.on_epoch_begin(Event(None, "train", step=0, epoch=0))

    def step_logs():
        return LazyLogs(lambda: {"loss": 0.5}, ready=lambda: False)

    for step in range(1, 6):
        if step == 4:
            logger.receive(Item("text", "note", "seen", step=4, epoch=0, in_epoch=True))
        event = Event(None, "train", step=step, epoch=0, batch=step - 1, logs=step_logs(), _step_logs=step_logs)
        logger.on_train_batch_end(event)
    assert logger.written == [("step", 1), ("step", 2), ("step", 3), ("text", 4)]
    logger.on_train_end(Event(None, "train", step=5, epoch=0))
    assert logger.written[4:] == [("step", 4), ("step", 5)]


@pytest.mark.parametrize("name", ["csv_logger", "json_lines", "mlflow", "rich", "tensorboard", "trackio", "wandb"])
def test_a_logger_is_short(name):
    """What loggers have in common belongs to the base class, and an encoding to a file of its own."""
    path = Path(loggers.__file__).with_name(f"{name}.py")
    assert len(path.read_text().splitlines()) <= 100


def test_a_logger_that_has_run_can_be_pickled(tmp_path):
    made = [
        loggers.CSV(tmp_path / "a.csv"),
        loggers.JSONLines(tmp_path / "a.jsonl"),
        loggers.TensorBoard(tmp_path / "b"),
    ]
    run(made, [{"loss": 1.0}])
    assert [logger.path for logger in pickle.loads(pickle.dumps(made))] == [logger.path for logger in made]


def test_steps_of_an_execution_are_those_of_steps_that_run_alone(tmp_path):
    x = np.random.default_rng(0).normal(size=(44, 3)).astype(np.float32)

    def written(fuse, every):
        place = tmp_path / f"{fuse}-{every}"
        made = [loggers.JSONLines(place / "a.jsonl", every), loggers.CSV(place / "a.csv", every=every)]
        trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        trainer.fit(x, x[:, :1], batch_size=4, epochs=2, callbacks=made, steps_per_execution=fuse, verbose=0)
        lines = [json.loads(line) for line in made[0].path.read_text().splitlines()]
        steps = [(e["step"], e["epoch"], e["examples"], e["values"]) for e in lines if e["type"] == "step"]
        return steps, made[1].path.read_text()

    for every in (eg.Every(steps=3), eg.Every(examples=10), eg.Every(steps=1)):
        assert written(8, every) == written(1, every)


class Checkpoints(Logger):
    """Collects the places of checkpoints."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_scalars(self, record):
        pass

    def log_checkpoint(self, item):
        self.steps.append((Path(item.value).parent.name, item.step))


def test_a_checkpoint_that_is_saved_again_is_logged_once(tmp_path):
    """The end of an epoch saves its last step again, which an interval in steps had saved."""
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    logger, path = Checkpoints(), tmp_path / "log.jsonl"
    x = np.ones((8, 2), np.float32)
    saves = [eg.callbacks.ModelCheckpoint(tmp_path / name, every=eg.Every(steps=2)) for name in "ab"]
    trainer.fit(x, x[:, :1], batch_size=2, verbose=0, callbacks=[*saves, logger, loggers.JSONLines(path)])
    assert sorted(logger.steps) == [("a", 2), ("a", 4), ("b", 2), ("b", 4)]
    assert path.read_text().count("step_") == 4


class Full:
    """A file on a full disk."""

    def __init__(self, file):
        self._file = file

    def write(self, text=b""):
        raise OSError(errno.ENOSPC, "No space left on device")

    writelines = flush = write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def close(self):
        self._file.close()
        self.write()


class FullSoon(Full):
    """A file on a disk that is full after its first lines."""

    def __init__(self, file):
        super().__init__(file)
        self._left = 2

    def writelines(self, lines=()):
        self._left -= 1
        (self._file if self._left >= 0 else super()).writelines(lines)

    flush = writelines


@pytest.mark.parametrize(
    ("kind", "named"),
    [("CSV", "log"), ("JSONLines", "log"), ("TensorBoard", r"log/train/events\.out\.tfevents\.[^']*")],
)
def test_the_error_of_a_full_disk_names_logger_and_file_once(tmp_path, kind, named, monkeypatch):
    path = tmp_path / "log"
    opened = Path.open

    def full(self, mode="r", **options):
        file = opened(self, mode, **options)
        if "tfevents" in self.name and mode == "wb":
            return FullSoon(file)
        return Full(file) if self == path and mode == "ab" else file

    monkeypatch.setattr(Path, "open", full)
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    x = np.ones((8, 2), np.float32)
    with pytest.raises(OSError, match=rf"No space left on device: '.*{named}'") as raised:
        trainer.fit(x, x[:, :1], batch_size=2, epochs=50, verbose=0, callbacks=[getattr(loggers, kind)(path)])
    assert raised.value.errno == errno.ENOSPC
    notes = "\n".join(raised.value.__notes__)
    assert notes.count("could not write its log") == 1
    assert kind in notes
    assert np.isfinite(trainer.evaluate(x, x[:, :1], verbose=0)["loss"])
