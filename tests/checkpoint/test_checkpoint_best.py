"""The best checkpoint of a run: by the values, after a resume, and with damage."""

from __future__ import annotations

import json

import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.checkpoint import best


class Scores(eg.Callback):
    """Logs a score for each epoch."""

    def __init__(self, *scores):
        self.scores = scores

    def on_epoch_end(self, event):
        event.log("score", self.scores[event.epoch])


def train(tmp_path, epochs, *scores, **kwargs):
    keep = eg.callbacks.ModelCheckpoint(tmp_path / "c", monitor="score", mode="max", async_save=False, **kwargs)
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    data = regression(8)
    trainer.fit(*data, epochs=epochs, verbose=0, callbacks=[Scores(*scores), keep], resume="auto")


def test_it_is_that_of_the_largest_value_also_after_a_resume(tmp_path):
    with pytest.raises(eg.errors.CheckpointError, match="no checkpoint in this directory"):
        best(tmp_path / "c")
    train(tmp_path, 2, 1.0, 3.0, 2.0, 0.0, save_top_k=2)
    train(tmp_path, 4, 1.0, 3.0, 2.0, 0.0, save_top_k=2)
    assert best(tmp_path / "c").name == "step_00000002"
    (tmp_path / "c" / "step_00000002" / "metadata.json").write_text(json.dumps({}))
    with pytest.warns(UserWarning, match="skipped better checkpoints, which are damaged: step_00000002"):
        assert best(tmp_path / "c").name == "step_00000003"


def test_without_a_monitor_none_is_the_best(tmp_path):
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), run_dir=tmp_path / "run")
    trainer.fit(*regression(8), verbose=0)
    with pytest.raises(eg.errors.CheckpointError, match="no log ranks these checkpoints"):
        best(tmp_path / "run")
