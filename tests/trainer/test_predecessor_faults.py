"""Known faults of Elegy 0.8, each by name. (Faults of callbacks and of devices have their tests beside those.)"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boring_modules import (
    TX,
    High,
    Managed,
    assert_same_bits,
    host,
    make_params,
    network,
    regression,
    trainer_of,
    weights,
)

import elegy as eg

X, Y = regression(22)


@pytest.mark.parametrize("level", [High, Managed])
@pytest.mark.parametrize("strategy", ["eager", "jit"])
def test_parameters_exist_once(level, strategy):
    """The module and the optimizer both held the parameters, and a step moved one of them."""
    trainer = trainer_of(level, strategy=strategy)
    trainer.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    shapes = [leaf.shape for leaf in jax.tree.leaves(trainer.state.params)]
    state = trainer.state.replace(losses_and_metrics=None, _logs=None)  # whose sums have the shape of a bias
    everywhere = [leaf.shape for leaf in jax.tree.leaves(state)]
    momentum = [leaf.shape for leaf in jax.tree.leaves(trainer.state.optimizer)]
    for shape in shapes:
        assert everywhere.count(shape) - momentum.count(shape) == shapes.count(shape)
        assert momentum.count(shape) == shapes.count(shape)  # one momentum each
    moved = trainer.state.replace(params=make_params(jax.random.key(8)))
    trainer.state = moved
    np.testing.assert_allclose(trainer.predict(X), network(moved.params, X), rtol=1e-5)


def test_splits_and_orders_never_touch_global_numpy_randomness():
    """`validation_split` and shuffling drew from `numpy.random`, so runs depended on what ran before them."""
    states = []
    for seed in (1, 2):
        np.random.seed(seed)
        before = np.random.get_state()[1].copy()
        trainer = trainer_of(High)
        trainer.fit(X, Y, batch_size=8, epochs=2, validation_split=0.3, verbose=0)
        trainer.predict(X)
        np.testing.assert_array_equal(np.random.get_state()[1], before)
        states.append((host(trainer.state), trainer.history.history))
    assert_same_bits(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


@pytest.mark.parametrize("strategy", ["eager", "jit"])
def test_sample_weights_reach_the_loss_the_metrics_and_the_validation(strategy):
    """`sample_weight` was accepted and dropped."""
    w = weights()
    metrics = {"mae": eg.metrics.MeanAbsoluteError()}
    trainer = trainer_of(High, metrics=metrics, strategy=strategy)
    trainer.fit(X, Y, sample_weight=w, batch_size=8, validation_data=(X, Y, w), verbose=0)
    error = np.array(network(trainer.state.params, X)) - Y
    expected = {
        "loss": np.average(np.mean(error**2, -1), weights=w),
        "mae": np.average(np.mean(np.abs(error), -1), weights=w),
    }
    values = trainer.evaluate(X, Y, sample_weight=w, batch_size=8, verbose=0)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5)
        np.testing.assert_allclose(trainer.history.history[f"val_{name}"], value, rtol=1e-5)
    plain = trainer_of(High, strategy=strategy)
    plain.fit(X, Y, batch_size=8, verbose=0)
    assert not np.array_equal(host(plain.state.params)[1], host(trainer.state.params)[1])
    poisoned = X.copy()
    poisoned[1] = 100.0  # its weight is zero
    ignoring = trainer_of(High, metrics=metrics, strategy=strategy)
    ignoring.fit(poisoned, Y, sample_weight=w, batch_size=8, verbose=0)
    np.testing.assert_allclose(ignoring.state.params["w"], trainer.state.params["w"], rtol=1e-5)


class Constant(eg.ElegyModule):
    """Predicts its inputs, and cannot learn."""

    def init(self, key, inputs):
        return self.replace(params={"zero": jnp.zeros(())})

    def apply(self, key, inputs, training):
        return inputs + 0.0 * self.params["zero"], self


@pytest.mark.parametrize("strategy", ["eager", "jit"])
@pytest.mark.parametrize("k", [1, 8])
def test_epoch_values_are_not_means_of_batch_means(strategy, k):
    """Batches of 8, 8 and 1: the mean of their means is far from the mean over the examples."""
    x = np.zeros((17, 1), np.float32)
    y = np.zeros((17, 1), np.float32)
    y[16] = 34.0
    trainer = eg.Trainer(
        Constant(),
        {"mse": eg.losses.MeanSquaredError(), "mae": eg.losses.MeanAbsoluteError()},
        {"metric": eg.metrics.MeanAbsoluteError()},
        TX,
        strategy=strategy,
    )
    history = trainer.fit(
        x, y, batch_size=8, shuffle=False, verbose=0, steps_per_execution=k, validation_data=(x, y)
    ).history
    expected = {"mse": 34.0**2 / 17, "mae": 34.0 / 17, "metric": 34.0 / 17, "loss": 34.0**2 / 17 + 34.0 / 17}
    values = trainer.evaluate(x, y, batch_size=8, verbose=0)
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], value, rtol=1e-6)
        np.testing.assert_allclose(history[f"val_{name}"], value, rtol=1e-6)
        np.testing.assert_allclose(values[name], value, rtol=1e-6)


def test_weighted_epoch_values_are_not_means_of_weighted_batch_means():
    x = np.zeros((4, 1), np.float32)
    y, w = np.float32([[1], [1], [5], [5]]), np.float32([9, 9, 1, 1])
    trainer = eg.Trainer(Constant(), eg.losses.MeanAbsoluteError(), optimizer=TX)
    history = trainer.fit(x, y, sample_weight=w, batch_size=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], (9 + 9 + 5 + 5) / 20, rtol=1e-6)
