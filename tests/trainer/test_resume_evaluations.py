"""Runs that end before, within or after an evaluation inside of an epoch go on to the same bits and records."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.callbacks import CSVLogger, EarlyStopping, ModelCheckpoint

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32))[:, None]


class Ends(eg.Callback):
    """Ends the run in a hook at a step, by a signal or an exception; in evaluations, in that of the second set."""

    batch_hooks_read = "logs"

    def __init__(self, hook, step, how):
        def end(event):
            if event.step == step and event.evaluation in (None, "val_near_"):
                if how == "signal":
                    signal.raise_signal(signal.SIGTERM)
                else:
                    raise RuntimeError("crash")

        setattr(self, hook, end)


def run(folder, every, end=None, **options):
    folder.mkdir(exist_ok=True)
    made = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.02))
    stop = EarlyStopping("val_near_loss", patience=99)
    log = CSVLogger(folder / "log.csv", every=eg.Every(steps=4))
    keep = ModelCheckpoint(folder / "run", monitor="val_near_loss", every=every, save_top_k=2)
    stream = iter([(X[i % 40 : i % 40 + 4], Y[i % 40 : i % 40 + 4]) for i in range(99)])  # each evaluation takes more
    sets = {"stream": eg.Evaluation(stream, steps=3), "near": (X[:8], Y[:8])}
    callbacks = [stop, log, *([] if end is None else [end]), keep]
    given = {"validation_data": sets, "validation_freq": eg.Every(steps=5), "callbacks": callbacks, "resume": "auto"}
    made.fit(X, Y, batch_size=4, epochs=2, verbose=0, **{**given, **options})
    return made, stop, log


def results(made, stop, log):
    with log.path.open() as file:
        rows = list(csv.DictReader(file))
    leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves((made.state.params, made.state.optimizer))]
    history = made.history
    return leaves, history.history, history.evaluations, (stop.best, stop.best_step, stop.wait), rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return results(*run(tmp_path_factory.mktemp("whole"), eg.Every(steps=5)))


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_test_begin", "on_test_batch_end", "on_evaluation_end"])
@pytest.mark.parametrize(
    ("how", "step", "every"),
    [
        ("signal", 10, eg.Every(steps=3)),
        ("crash", 10, eg.Every(steps=5)),
        ("crash", 15, eg.Every(steps=3)),
        pytest.param("signal", 5, eg.Every(steps=5), marks=pytest.mark.slow),
        pytest.param("crash", 10, eg.Every(epochs=1), marks=pytest.mark.slow),
        pytest.param("signal", 10, eg.Every(epochs=1), marks=pytest.mark.slow),
    ],
)
# The position of an iterator is counted, with a warning that says so.
@pytest.mark.filterwarnings("ignore:the position of the")
@pytest.mark.some(5)
def test_no_evaluation_is_lost_or_counted_twice(tmp_path, whole, hook, how, step, every):
    if how == "signal":
        run(tmp_path, every, Ends(hook, step, how))
    else:
        with pytest.raises(RuntimeError, match="crash"):
            run(tmp_path, every, Ends(hook, step, how))
    resumed = results(*run(tmp_path, every))
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours == theirs


def test_an_evaluation_at_the_last_step_is_made_up_for(tmp_path, whole):
    made, _, _ = run(tmp_path, eg.Every(steps=5), Ends("on_test_begin", 10, "signal"), max_steps=10)
    assert [one["step"] for one in made.history.evaluations["near"]] == [5]
    with pytest.warns(UserWarning, match="the position of the"):
        made, _, _ = run(tmp_path, eg.Every(steps=5), max_steps=10)
    assert made.history.evaluations["near"] == whole[2]["near"][:2]
    assert made.step == 10


KILLED = """
import os, signal, sys
from pathlib import Path
import elegy as eg
import test_resume_evaluations as here

class Kills(eg.Callback):
    batch_hooks_read = "logs"
    def meet(self, callbacks):
        self.saver = next(one for one in callbacks if isinstance(one, eg.callbacks.ModelCheckpoint))
    def on_test_batch_end(self, event):
        if event.step == 10 and event.evaluation == "val_near_":
            self.saver.wait()
            os.kill(os.getpid(), signal.SIGKILL)

here.run(Path(sys.argv[1]), eg.Every(steps=5), Kills())
"""


@pytest.mark.filterwarnings("ignore:the position of the")
def test_a_kill_during_an_evaluation(tmp_path, whole):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "step_00000010").exists()
    for ours, theirs in zip(results(*run(tmp_path, eg.Every(steps=5))), whole, strict=True):
        assert ours == theirs
