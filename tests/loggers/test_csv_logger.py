"""CSVLogger, and what it has in common with TensorBoard."""

import csv
import json
import math

import numpy as np
import pytest
from event_files import read_events
from fake_run import FakeTrainer, run

from elegy.callbacks import CallbackList, CSVLogger, Event, LazyLogs, TensorBoard, deferred_logs
from elegy.loggers import gatherer
from elegy.loggers.log_writer import WRITER
from elegy.types import Every


def rows(path, separator=","):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


class TestCSVLogger:
    def test_a_row_an_epoch(self, tmp_path):
        path = tmp_path / "deep" / "log.csv"
        run([CSVLogger(path)], [{"loss": 0.5, "accuracy": 0.25}, {"loss": math.nan, "accuracy": 1.0}])
        assert path.read_text() == "epoch,step,loss,accuracy\n0,4,0.5,0.25\n1,8,nan,1.0\n"

    def test_every_float_survives(self, tmp_path):
        value = float(np.float32(0.1))
        run([CSVLogger(tmp_path / "log.csv")], [{"loss": value}])
        assert float(rows(tmp_path / "log.csv")[0]["loss"]) == value

    def test_steps(self, tmp_path):
        reads = []
        run(
            [CSVLogger(tmp_path / "log.csv", every=Every(steps=3))],
            [{"loss": 9.0}, {"loss": 9.0, "val_loss": 7.0}],
            batch_logs=lambda step: {"loss": step / 2},
            reads=reads,
        )
        assert (tmp_path / "log.csv").read_text() == "epoch,step,loss,val_loss\n0,3,1.5,\n1,6,3.0,\n1,8,9.0,7.0\n"
        assert reads == [3, 6]

    def test_late_names_are_not_lost(self, tmp_path):
        path = tmp_path / "log.csv"
        run([CSVLogger(path, separator=";")], [{"a": 1.0}, {"a": 2.0, "val_a": 3.0}, {"a": 4.0}, {"b": 5.0}])
        assert path.read_text() == "epoch;step;a;val_a;b\n0;4;1.0;;\n1;8;2.0;3.0;\n2;12;4.0;;\n3;16;;;5.0\n"
        assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]

    def test_append(self, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text("epoch,step,old\n0,4,1\n1,8,2")
        run([CSVLogger(path, append=True)], [{"loss": 1.0}])
        assert path.read_text() == "epoch,step,old,loss\n0,4,1,\n1,8,2,\n0,4,,1.0\n"

    @pytest.mark.parametrize(("seconds", "late"), [(0.9, 1), (1.1, 0)])
    def test_what_is_written_survives_a_crash(self, tmp_path, monkeypatch, seconds, late):
        now = [0.0]
        monkeypatch.setattr(deferred_logs.time, "monotonic", lambda: now[0])
        path = tmp_path / "log.csv"
        logger = CSVLogger(path)
        logger.on_train_begin(Event(None, "train", step=0, epoch=0))
        try:
            for epoch in range(3):
                logs = LazyLogs(lambda: {"loss": 1.0}, ready=lambda epoch=epoch: now[0] > epoch * seconds)
                logger.on_epoch_end(Event(None, "train", step=epoch, epoch=epoch, logs=logs))
                WRITER.wait_for_all()
                assert len(rows(path)) == (epoch + 1 - late if epoch else 1)
                now[0] += seconds
            logger.state_dict()
            assert len(rows(path)) == 3
        finally:
            logger.on_train_end(Event(None, "train", step=3, epoch=2))
        assert len(rows(path)) == 3

    @pytest.mark.parametrize("slow", [0, 1, 3, 100])
    def test_rows_in_quick_succession_do_not_wait_for_their_step(self, tmp_path, slow, monkeypatch):
        """A device that is `slow` epochs behind: only what it has computed is read, or what is too far behind."""
        monkeypatch.setattr(gatherer, "_GATHER", 0.0)
        monkeypatch.setattr(gatherer, "_LONGEST", 0.0)
        reads: list[int] = []
        begun: list[int] = []
        logger = CSVLogger(tmp_path / "log.csv")
        logger.on_train_begin(Event(None, "train", step=0, epoch=0))
        for epoch in range(60):
            begun.append(epoch)
            logs = LazyLogs(
                lambda epoch=epoch: reads.append(epoch) or {"loss": float(epoch)},
                ready=lambda epoch=epoch: begun[-1] >= epoch + slow,
            )
            logger.on_epoch_end(Event(None, "train", step=epoch, epoch=epoch, logs=logs))
            # Nothing came before the first row, so it is written at once. Others are read when the next one comes.
            assert reads == list(range(len(reads)))
            if slow < 32:
                assert len(reads) == max(epoch + 1 - max(slow, 1), 1)
            else:  # the device keeps half of the 32
                assert epoch + 1 - 32 <= len(reads) <= max(epoch + 1 - 16, 1)
        logger.on_train_end(Event(None, "train", step=60, epoch=59))
        assert [(row["step"], row["loss"]) for row in rows(logger.path)] == [(str(k), f"{k}.0") for k in range(60)]

    def test_the_end_of_an_epoch_without_validation_reads_nothing(self, tmp_path):
        reads = []
        logger = CSVLogger(tmp_path / "log.csv", every=Every(steps=3))
        logger.on_train_begin(Event(None, "train", step=0, epoch=0))
        logs = LazyLogs(lambda: reads.append(1) or {"loss": 1.0}, ready=lambda: False)
        logger.on_epoch_end(Event(None, "train", step=2, epoch=0, logs=logs))
        logger.on_train_end(Event(None, "train", step=2, epoch=0))
        assert reads == []

    def test_a_resumed_run_has_the_rows_of_the_whole_one(self, tmp_path):
        logs = [{"loss": float(i)} for i in range(4)]
        whole, saved, resumed = (tmp_path / name / "log.csv" for name in ("whole", "saved", "resumed"))
        run([CSVLogger(whole)], logs)
        states = json.loads(json.dumps(run([CSVLogger(saved)], logs[:2]).callbacks.state_dict()))
        run([CSVLogger(resumed)], logs[:3])  # got one epoch further than its checkpoint of step 8
        run([CSVLogger(resumed)], logs[2:], trainer=at_step(8), first_epoch=2, states=states)
        assert resumed.read_text() == whole.read_text()

    def test_an_unwritable_file_is_found_at_the_beginning(self, tmp_path):
        trainer = FakeTrainer()
        with pytest.raises(IsADirectoryError, match="directory"):
            run([CSVLogger(tmp_path)], [{"loss": 1.0}], trainer=trainer)
        assert trainer.step == 0

    def test_fuses(self, tmp_path):
        assert CallbackList([CSVLogger(tmp_path / "a", every=Every(steps=1))]).longest_execution("train") == (None, ())


@pytest.mark.parametrize("make", [lambda path: CSVLogger(path / "log.csv"), TensorBoard])
@pytest.mark.parametrize("ended", ["failed", "finished"])
def test_what_a_run_could_not_write_does_not_come_back(tmp_path, make, ended):
    def broken():
        raise ZeroDivisionError("the device is gone")

    def written():
        if isinstance(callback, CSVLogger):
            return [(int(row["step"]), float(row["loss"])) for row in rows(callback.path)]
        return read_events(tmp_path / "train").get("epoch_loss", [])

    callback = make(tmp_path)
    callbacks = CallbackList([callback])
    callbacks.emit("on_train_begin", Event(FakeTrainer(), "train", step=0, epoch=0))
    for epoch, fetch in enumerate([lambda: {"loss": 1.0}, lambda: {"loss": 2.0}, broken, lambda: {"loss": 4.0}]):
        logs = LazyLogs(fetch, ready=lambda: False)
        callbacks.emit("on_epoch_end", Event(FakeTrainer(), "train", step=epoch + 1, epoch=epoch, logs=logs))
    end = Event(at_step(4), "train", step=4, epoch=3, ended=ended)
    if ended == "failed":  # its own exception is the one to see
        with pytest.warns(UserWarning, match="the run failed, and its last logs could not be written: the device is"):
            callbacks.emit("on_train_end", end)
    else:
        with pytest.raises(ZeroDivisionError, match="the device is gone"):
            callbacks.emit("on_train_end", end)
    assert written() == [(1, 1.0), (2, 2.0)]
    callback.state_dict()
    trainer = at_step(10)
    run([callback], [{"loss": 7.0}], trainer=trainer)
    assert written()[-1] == (14, 7.0)
    assert {value for _, value in written()} <= {1.0, 2.0, 7.0}


def test_a_run_that_never_ended_leaves_nothing_to_the_next(tmp_path):
    logger = CSVLogger(tmp_path / "log.csv")
    logger.on_train_begin(Event(FakeTrainer(), "train", step=0, epoch=0))
    for epoch in range(4):
        logs = LazyLogs(lambda: {"loss": 1.0}, ready=lambda: False)
        logger.on_epoch_end(Event(FakeTrainer(), "train", step=epoch, epoch=epoch, logs=logs))
    with pytest.warns(UserWarning, match="this run writes its logs to"):
        run([logger], [{"loss": 7.0}])
    assert (tmp_path / "log.csv").read_text() == "epoch,step,loss\n0,0,1.0\n"
    assert (tmp_path / "log_1.csv").read_text() == "epoch,step,loss\n0,4,7.0\n"


def at_step(step):
    trainer = FakeTrainer()
    trainer.step = step
    return trainer
