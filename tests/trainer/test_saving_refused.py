"""Saves and restores that cannot succeed say why, and leave the run as if nobody had asked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil

import numpy as np
import optax
import pytest
from boring_modules import High, host, regression

import elegy as eg
from elegy.callbacks import Callback, ModelCheckpoint
from elegy.checkpoint import find_checkpoints, store
from elegy.errors import CheckpointError, CheckpointFormatError

SIZE, BATCH, STEPS = 22, 4, 6


class OtherNames(High):
    """A model whose parameters have other names."""

    def init(self, key, inputs):
        params = super().init(key, inputs).params
        return self.replace(params={"w": params["w"], "bias": params["b"]})

    def apply(self, key, inputs, training):
        return inputs @ self.params["w"] + self.params["bias"], self


def make(module=High, **kwargs):
    return eg.Trainer(module(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05), **kwargs)


def fit(trainer, **kwargs):
    return trainer.fit(*regression(SIZE), batch_size=BATCH, verbose=0, **{"epochs": 2, **kwargs})


def assert_same(leaves, others):
    for one, other in zip(leaves, others, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


class At(Callback):
    """Asks for something after a step, and keeps what it raised."""

    batch_hooks_read = "state"

    def __init__(self, step, action):
        self.step, self.action, self.error = step, action, None

    def on_train_batch_end(self, event):
        if event.step == self.step:
            before = host(event.trainer.state)
            try:
                self.action(event.trainer)
            except CheckpointError as error:
                self.error = str(error)
            assert_same(host(event.trainer.state), before)


def no_space(path, monkeypatch):
    def write(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_arrays", write)


def saved(path, module=High):
    trainer = make(module)
    fit(trainer, max_steps=4)
    trainer.save(path)


def damaged(path):
    saved(path)
    os.truncate(path / "metadata.json", 10)


def older(path):
    """With a manifest as another release would have written it: its checksum is right."""
    saved(path)
    body = json.loads((path / "manifest.json").read_text())["body"] | {"format": 0}
    text = json.dumps(body, sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(f'{{"body": {text}, "sha256": "{checksum}"}}\n')


WRITES = {
    "no space": (no_space, "could not be written.*No space left"),
    "a file": (lambda path, _: path.write_text("mine"), "this is a file or a link"),
    "other things": (lambda path, _: (path / "thesis").mkdir(parents=True), "other things than a checkpoint .thesis."),
}
READS = {
    "another model": (lambda path: saved(path, OtherNames), r"params/b: missing in(.|\n)*params/bias: unexpected"),
    "damaged": (damaged, r"metadata\.json: holds 10 bytes"),
    "older format": (older, "has format 0.*Load it with the release that wrote it"),
    "another kind": (lambda path: store.save(path, {}, {}, kind="weights"), "kind 'weights', but the kind 'trainer'"),
    "nothing": (lambda path: None, "there is no such checkpoint"),
}


@pytest.mark.parametrize("case", [*WRITES, *READS])
@pytest.mark.some(4)
def test_a_refused_save_does_not_change_the_run(tmp_path, monkeypatch, case):
    path = tmp_path / "step_00000004"
    if case in WRITES:
        prepare, message = WRITES[case]
        prepare(path, monkeypatch)
        asks = At(5, lambda trainer: trainer.save(path))
    else:
        prepare, message = READS[case]
        prepare(path)
        asks = At(5, lambda trainer: trainer.restore(path))
    plain, asked = make(), make()
    history = fit(plain, callbacks=[At(5, lambda trainer: None)]).history
    assert fit(asked, callbacks=[asks]).history == history
    assert re.search(message, asks.error), asks.error
    assert_same(host(asked.state), host(plain.state))


@pytest.mark.parametrize("case", READS)
def test_a_run_that_cannot_resume_leaves_the_trainer_as_it_was(tmp_path, case):
    prepare, message = READS[case]
    prepare(tmp_path / "step_00000004")
    plain, asked = make(), make()
    for trainer in (plain, asked):
        fit(trainer, max_steps=3)
    with pytest.raises(CheckpointError, match=message):
        fit(asked, resume=tmp_path / "step_00000004")
    asked.set_strategy("jit")  # which a run that goes on refuses
    assert (asked.step, asked.epoch) == (plain.step, plain.epoch)
    assert asked.history.history == plain.history.history
    assert_same(host(asked.state), host(plain.state))
    assert fit(asked).history == fit(plain).history
    assert_same(host(asked.state), host(plain.state))


def test_the_directory_of_another_run_is_refused(tmp_path):
    fit(make(), epochs=3, callbacks=[ModelCheckpoint(tmp_path, save_top_k=-1)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    other = make(seed=1)
    with pytest.raises(CheckpointError, match=r"begins at step 0.*of another run.*step_00000006, .*step_00000018"):
        fit(other, callbacks=[ModelCheckpoint(tmp_path)])
    assert other.step == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(CheckpointError, match="seed was 42, now it is 1"):
        fit(other, callbacks=[ModelCheckpoint(tmp_path)], resume="auto")
    # An earlier checkpoint of a run goes on elsewhere: what came after it would be resumed from.
    with pytest.raises(CheckpointError, match=r"begins at step 6, .*step_00000012, step_00000018"):
        fit(make(), callbacks=[ModelCheckpoint(tmp_path)], resume=tmp_path / "step_00000006")
    goes_on = make()
    fit(goes_on, epochs=4, callbacks=[ModelCheckpoint(tmp_path, save_top_k=-1)], resume="auto")
    fit(goes_on, callbacks=[ModelCheckpoint(tmp_path)])
    assert find_checkpoints(tmp_path)[-1].name == "step_00000036"


def test_auto_does_not_pass_over_another_format(tmp_path):
    saved(tmp_path / "step_00000004")
    older(tmp_path / "step_00000006")
    with pytest.raises(CheckpointFormatError, match="step_00000006: the checkpoint has format 0"):
        fit(make(), callbacks=[ModelCheckpoint(tmp_path)], resume="auto")


def test_a_directory_that_vanishes_during_the_run(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "run")

    def vanish(trainer):
        checkpoint.wait()
        shutil.rmtree(checkpoint.directory)
        checkpoint.directory.write_text("")

    trainer = make()
    with pytest.raises(CheckpointError, match="could not be written"):
        fit(trainer, callbacks=[At(8, vanish), checkpoint])
    assert (trainer.step, trainer.epoch) == (12, 2)
