"""TensorBoard: what is written, and that a resumed run shows what the whole one does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import pytest
from event_files import read_events, read_records
from fake_run import FakeState, FakeTrainer, run

import elegy as eg
from elegy.callbacks import Callback, CallbackList, Event, LazyLogs, ModelCheckpoint, TensorBoard
from elegy.types import Every

rng = np.random.default_rng(3)
X = rng.normal(size=(50, 6)).astype(np.float32)
Y = rng.integers(0, 3, 50)


class TestTensorBoard:
    def test_epochs(self, tmp_path):
        run([TensorBoard(tmp_path)], [{"loss": 0.5}, {"loss": 0.25, "val_loss": 2.0}, {"loss": 4.0}])
        assert read_events(tmp_path / "train") == {"epoch_loss": [(4, 0.5), (8, 0.25), (12, 4.0)]}
        assert read_events(tmp_path / "validation") == {"epoch_loss": [(8, 2.0)]}

    def test_with_a_checkpoint_the_files_are_complete(self, tmp_path):
        callback = TensorBoard(tmp_path)
        callback.on_train_begin(Event(None, "train", step=0, epoch=0))
        reads = []
        for epoch in range(3):
            logs = LazyLogs(lambda epoch=epoch: reads.append(epoch) or {"loss": 1.0}, ready=lambda: False)
            callback.on_epoch_end(Event(None, "train", step=epoch, epoch=epoch, logs=logs))
        assert reads == [0]
        assert callback.state_dict()["run"] == tmp_path.name
        assert reads == [0, 1, 2]
        assert read_events(tmp_path / "train") == {"epoch_loss": [(0, 1.0), (1, 1.0), (2, 1.0)]}
        callback.on_train_end(Event(None, "train", step=3, epoch=2))

    def test_steps_read_only_when_due(self, tmp_path):
        reads = []
        run(
            [TensorBoard(tmp_path, every=Every(steps=3))],
            [{"loss": 0.5}, {"loss": 0.25}],
            batch_logs=lambda step: {"loss": float(step)},
            reads=reads,
        )
        assert reads == [3, 6]
        assert read_events(tmp_path / "train") == {
            "batch_loss": [(3, 3.0), (6, 6.0)],
            "epoch_loss": [(4, 0.5), (8, 0.25)],
        }

    def test_every_second_epoch(self, tmp_path):
        run([TensorBoard(tmp_path, every=Every(epochs=2))], [{"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}])
        assert read_events(tmp_path / "train") == {"epoch_loss": [(8, 2.0)]}

    def test_histograms(self, tmp_path):
        params = {
            "w": jnp.arange(6, dtype=jnp.bfloat16),
            "broken": jnp.array([1.0, jnp.nan]),
            "lost": jnp.array([jnp.nan]),
            "key": jax.random.key(0),
            "n": 3 * jnp.ones((), int),
        }
        trainer = FakeTrainer()
        trainer.state = FakeState(params, None)
        callback = TensorBoard(tmp_path, histograms=True)
        callback.on_train_begin(Event(trainer, "train", step=0, epoch=0))
        callback.on_epoch_end(Event(trainer, "train", step=5, epoch=0, logs={}))
        callback.on_train_end(Event(trainer, "train", step=5, epoch=0))
        found = read_events(tmp_path / "train")
        assert sorted(found) == ["params/broken", "params/w"]
        ((step, histogram),) = found["params/w"]
        assert (step, histogram.num, histogram.sum, histogram.min, histogram.max) == (5, 6, 15, 0, 5)
        assert found["params/broken"][0][1].num == 1

    def test_the_files_are_closed_when_the_run_fails(self, tmp_path):
        callback = TensorBoard(tmp_path)
        with pytest.raises(ZeroDivisionError):
            run([callback], [{"loss": 1.0}], batch_logs=None, steps=4, trainer=Failing())
        assert not [file for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path))]

    def test_fuses(self, tmp_path):
        assert CallbackList([TensorBoard(tmp_path, every=Every(steps=1))]).longest_execution("train") == (None, ())


class Failing(FakeTrainer):
    """Fails in its first step."""

    def __setattr__(self, name, value):
        if name == "state" and self.__dict__.get("step"):
            raise ZeroDivisionError
        super().__setattr__(name, value)


class Crash(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, event):
        if event.epoch == self.epoch:
            raise ZeroDivisionError


def fit(callbacks, **kwargs):
    trainer = eg.Trainer(nn.Dense(3), eg.losses.CrossEntropy(), optimizer=optax.adam(0.01))
    options = {"epochs": 4, "validation_split": 0.2, "batch_size": 10, "resume": "auto", "verbose": 0}
    trainer.fit(X, Y, callbacks=callbacks, **{**options, **kwargs})


def shown(directory):
    """The values that TensorBoard shows: the start of a session hides what earlier files hold from its step on."""
    from tensorboardX.proto.event_pb2 import SessionLog

    found = []
    for record in read_records(directory):
        if record.session_log.status == SessionLog.START:
            found = [one for one in found if one[1] < record.step]
        found.extend((value.tag, record.step, value.simple_value) for value in record.summary.value)
    return sorted(found)


def test_tensorboard_shows_no_step_twice_after_a_crash(tmp_path):
    def callbacks(directory, every):
        board = TensorBoard(directory / "logs", every=eg.Every(steps=3))
        return [board, ModelCheckpoint(directory / "saved", every=eg.Every(steps=every))]

    for every in (5, 8):
        whole, cut = tmp_path / f"whole{every}", tmp_path / f"cut{every}"
        fit(callbacks(whole, every))
        for epoch in (1, 3):
            with pytest.raises(ZeroDivisionError):
                fit([*callbacks(cut, every), Crash(epoch)])
        fit(callbacks(cut, every))
        for part in ("train", "validation"):
            assert shown(cut / "logs" / part) == shown(whole / "logs" / part)


@pytest.mark.parametrize(
    ("every", "ends"), [(eg.Every(epochs=1), [1]), (eg.Every(steps=3), [0, 2]), (eg.Every(steps=1), [1])]
)
def test_tensorboard_hides_no_record_that_came_after_the_checkpoint_of_its_step(tmp_path, every, ends):
    class Save(Callback):
        def on_epoch_end(self, event):
            event.trainer.save(tmp_path / "saved")

    fit([TensorBoard(tmp_path / "whole", every=every)], resume=None)
    for resume, epochs in zip([None, *[tmp_path / "saved"] * len(ends)], [*(end + 1 for end in ends), 4], strict=True):
        fit([Save(), TensorBoard(tmp_path / "cut", every=every)], resume=resume, epochs=epochs)
    for part in ("train", "validation"):
        assert shown(tmp_path / "cut" / part) == shown(tmp_path / "whole" / part)
