"""TensorBoard after a crash: a resumed run shows what the whole one does."""

import flax.linen as nn
import numpy as np
import optax
import pytest
from test_callbacks_loggers import read_records

import elegy as eg
from elegy.callbacks import Callback, ModelCheckpoint, TensorBoard

rng = np.random.default_rng(3)
X = rng.normal(size=(50, 6)).astype(np.float32)
Y = rng.integers(0, 3, 50)


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
