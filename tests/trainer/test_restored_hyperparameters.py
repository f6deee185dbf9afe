"""Hyperparameters in the state of an optimizer: a checkpoint's replace those of a new one, with a word."""

from __future__ import annotations

import warnings

import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg

X, Y = regression()


def make(rate):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=rate)
    return eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=tx)


def rate_of(trainer) -> float:
    return float(trainer.state.optimizer.state.hyperparams["learning_rate"])


@pytest.fixture
def saved(tmp_path):
    trainer = make(0.1)
    trainer.fit(X, Y, verbose=0)
    trainer.save(tmp_path / "c")
    return tmp_path / "c"


def test_the_warning_of_a_difference_has_both_values(saved):
    trainer = make(0.0)
    trainer.init_on_batch(X, Y)
    with pytest.warns(UserWarning, match=r"learning_rate is 0\.1.* in the checkpoint and 0\.0 in the trainer"):
        trainer.restore(saved)
    assert rate_of(trainer) == np.float32(0.1)


@pytest.mark.parametrize(("wanted", "rate"), [("saved", 0.1), ("new", 0.0)])
@pytest.mark.parametrize("early", [False, True])
def test_the_argument_says_which_wins(saved, wanted, rate, early):
    trainer = make(0.0)
    if not early:
        trainer.init_on_batch(X, Y)
    trainer.restore(saved, hyperparameters=wanted)
    if early:
        trainer.init_on_batch(X, Y)
    assert rate_of(trainer) == np.float32(rate)
    before = trainer.state.params["w"]
    trainer.fit(X, Y, verbose=0)
    assert np.array_equal(before, trainer.state.params["w"]) == (rate == 0.0)


def test_a_resumed_run_warns(saved):
    with pytest.warns(UserWarning, match="learning_rate is 0.1"):
        make(0.0).fit(X, Y, epochs=2, resume=saved, verbose=0)


@pytest.mark.parametrize(("wanted", "rate"), [("saved", 0.1), ("new", 0.0)])
def test_a_resumed_run_has_those_that_the_argument_says(saved, wanted, rate):
    started, trainer = make(0.0), make(0.0)
    started.init_on_batch(X, Y)
    started.restore(saved, hyperparameters=wanted)
    trainer.fit(X, Y, epochs=2, resume=saved, hyperparameters=wanted, verbose=0)
    assert rate_of(trainer) == np.float32(rate)
    assert np.array_equal(started.state.params["w"], trainer.state.params["w"]) == (rate == 0.0)


def test_schedules_and_equal_values_are_not_differences(saved, tmp_path):
    make(0.1).restore(saved)
    schedule = make(optax.linear_schedule(0.1, 0.0, 10))
    schedule.fit(X, Y, verbose=0)
    schedule.save(tmp_path / "s")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = make(optax.linear_schedule(0.1, 0.0, 10))
        again.init_on_batch(X, Y)
        again.restore(tmp_path / "s")


def test_another_word_is_refused(saved):
    with pytest.raises(ValueError, match="must be 'saved', 'new' or None"):
        make(0.1).restore(saved, hyperparameters="mine")
    with pytest.raises(ValueError, match="must be 'saved', 'new' or None"):
        make(0.1).fit(X, Y, hyperparameters="mine")


def test_a_resume_of_another_structure_advises_what_can_be_written(saved):
    other = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
    with pytest.raises(eg.errors.CheckpointError, match=r"`trainer.restore\(path, strict=False\)` loads what fits"):
        other.fit(X, Y, resume=saved, verbose=0)
