"""`OptunaPruning` in real studies, in memory."""

import flax.linen as nn
import numpy as np
import optax
import optuna
import pytest

import elegy as eg

X = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
optuna.logging.set_verbosity(optuna.logging.WARNING)


def objective(trial, epochs=3, **options):
    rate = trial.suggest_float("rate", 1e-3, 10.0, log=True)
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.inject_hyperparams(optax.sgd)(rate))
    pruning = eg.callbacks.OptunaPruning(trial, "val_loss")
    history = trainer.fit(
        X, 3 * X, validation_data=(X, 3 * X), epochs=epochs, verbose=0, callbacks=[pruning], **options
    )
    return history.history["val_loss"][-1]


@pytest.mark.slow
def test_a_study_of_20_trials_prunes_and_finds_a_good_rate():
    sampler, pruner = optuna.samplers.TPESampler(seed=0), optuna.pruners.MedianPruner(n_startup_trials=4)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    study.optimize(objective, n_trials=20)
    states = [trial.state.name for trial in study.trials]
    assert states.count("PRUNED") >= 3
    assert states.count("PRUNED") + states.count("COMPLETE") == 20
    assert study.best_value < 0.5
    assert all(len(t.intermediate_values) == 3 for t in study.trials if t.state.name == "COMPLETE")


def test_reports_are_those_of_the_history_and_a_pruned_trial_ends():
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=0.0, upper=100.0))
    study.enqueue_trial({"rate": 0.1})
    study.enqueue_trial({"rate": 10.0})
    study.optimize(objective, n_trials=2)
    good, bad = study.trials
    assert (good.state.name, bad.state.name) == ("COMPLETE", "PRUNED")
    # By hand: the batch is all of the data, so each epoch is one step of gradient descent on the mean of squares.
    w, b, values = *_first_weights(), []
    for _ in range(3):
        error = X[:, 0] * w + b - 3 * X[:, 0]
        w, b = w - 0.1 * 2 * (error * X[:, 0]).mean(), b - 0.1 * 2 * error.mean()
        values.append(((X[:, 0] * w + b - 3 * X[:, 0]) ** 2).mean())
    np.testing.assert_allclose([*good.intermediate_values.values()], values, rtol=1e-5)
    assert max(bad.intermediate_values.values()) > 100


def _first_weights():
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.init_on_batch((X, X))
    params = trainer.state.params
    return params["kernel"][0, 0], params["bias"][0]


def test_evaluations_inside_of_epochs_are_reported():
    study = optuna.create_study()
    study.enqueue_trial({"rate": 0.1})
    study.optimize(
        lambda trial: objective(trial, epochs=1, batch_size=8, validation_freq=eg.Every(steps=2)), n_trials=1
    )
    assert list(study.trials[0].intermediate_values) == [0, 1]


def test_bad_trials_and_names_are_refused():
    with pytest.raises(TypeError, match=r"must be an optuna\.trial\.Trial"):
        eg.callbacks.OptunaPruning(3)
    several = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="several objectives"):
        eg.callbacks.OptunaPruning(several.ask())
    trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="no validation data"):
        trainer.fit(X, X, verbose=0, callbacks=[eg.callbacks.OptunaPruning(optuna.create_study().ask(), "val_loss")])
    assert trainer.step == 0
