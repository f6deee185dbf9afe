"""With 64 bits on, whatever is trained and logged is as exact as NumPy in float64."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg

RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(50, 4)), RNG.normal(size=50), RNG.uniform(0.5, 2.0, size=50)
START = RNG.normal(size=4)
DECAY = 0.3


@pytest.fixture(autouse=True)
def with_64_bits():
    jax.config.update("jax_enable_x64", True)  # for all threads: loaders work on others
    yield
    jax.config.update("jax_enable_x64", False)


def by_hand(batch_size, epochs, rate=0.1):
    """Gradient descent on the weighted mean of squares and a penalty: parameters, and the last epoch's values."""
    w = START.copy()
    for _ in range(epochs):
        sums = np.zeros(4)
        for first in range(0, 50, batch_size):
            x, y, weight = (a[first : first + batch_size] for a in (X, Y, W))
            error, penalty = x @ w - y, DECAY * (w**2).sum()
            sums += (weight * error**2).sum(), weight.sum(), len(x) * penalty, (weight * abs(error)).sum()
            w -= rate * (2 * (weight * error) @ x / weight.sum() + 2 * DECAY * w)
    return w, {"mean_squared_error": sums[0] / sums[1], "l2": sums[2] / 50, "mean_absolute_error": sums[3] / sums[1]}


def trainer(strategy="jit", **kwargs):
    network = (lambda key, x: jnp.asarray(START), lambda params, x: x @ params)
    return eg.Trainer(
        network,
        [eg.losses.MeanSquaredError(), eg.regularizers.L2(DECAY)],
        eg.metrics.MeanAbsoluteError(),
        optax.sgd(0.1),
        strategy=strategy,
        **kwargs,
    )


def check(values, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-12)
    np.testing.assert_allclose(values["loss"], expected["mean_squared_error"] + expected["l2"], rtol=1e-12)


@pytest.mark.parametrize("strategy", ["jit", "eager", "data_parallel", "sharded"])
@pytest.mark.parametrize("batch_size", [50, 16])
@pytest.mark.some(3)
def test_parameters_and_logs(strategy, batch_size):
    trained = trainer(strategy, nonfinite="skip")
    options = {"sample_weight": W, "batch_size": batch_size, "verbose": 0}
    history = trained.fit(X, Y, epochs=3, shuffle=False, **options)
    w, expected = by_hand(batch_size, 3)
    np.testing.assert_allclose(jax.tree.leaves(trained.state.params)[0], w, rtol=0, atol=1e-14)
    check({name: values[-1] for name, values in history.history.items()}, expected)
    error = X @ w - Y
    expected = {
        "mean_squared_error": np.average(error**2, weights=W),
        "l2": DECAY * (w**2).sum(),
        "mean_absolute_error": np.average(abs(error), weights=W),
    }
    check(trained.evaluate(X, Y, **options), expected)


class Managed(eg.ElegyModule):
    def managed_init_step(self, key, batch):
        return self.replace(params=jnp.asarray(START))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss = jnp.mean((batch[0] @ self.params - batch[1]) ** 2)
        return loss, self.log("third", loss / 3).log("sum", loss / 3, reduce="sum").log("last", loss, reduce="last")


@pytest.mark.parametrize("strategy", ["jit", "data_parallel"])
def test_logs_of_a_managed_step(strategy):
    history = eg.Trainer(Managed(), optimizer=optax.sgd(0.0), strategy=strategy).fit(
        X[:48], Y[:48], batch_size=16, shuffle=False, verbose=0
    )
    batches = ((X[:48] @ START - Y[:48]) ** 2).reshape(3, 16).mean(1)

    expected = {"loss": batches.mean(), "third": batches.mean() / 3, "last": batches[-1], "sum": batches.sum() / 3}
    for name in ("loss", "third", "last") if strategy == "data_parallel" else expected:
        np.testing.assert_allclose(history.history[name], expected[name], rtol=1e-12)


def test_metrics_of_weights_that_float32_cannot_tell_apart():
    weight = 1 + 1e-10 * np.arange(50)
    target, said = (Y > 0).astype(int), (X[:, 0] > 0).astype(int)
    accuracy = eg.metrics.Accuracy(num_classes=2).update(target=target, preds=said, sample_weight=weight)
    np.testing.assert_allclose(accuracy.compute(), np.average(target == said, weights=weight), rtol=1e-14)
    matrix = eg.metrics.ConfusionMatrix(2).update(target=target, preds=said, sample_weight=weight)
    np.testing.assert_allclose(matrix.compute()[1, 1], weight[(target == 1) & (said == 1)].sum(), rtol=1e-14)
    r2 = eg.metrics.R2().update(target=Y, preds=X[:, 0], sample_weight=weight)
    mean = np.average(Y, weights=weight)
    expected = 1 - (weight * (Y - X[:, 0]) ** 2).sum() / (weight * (Y - mean) ** 2).sum()
    np.testing.assert_allclose(r2.compute(), expected, rtol=1e-13)


def test_the_loss_that_an_optimizer_is_given_has_the_dtype_of_the_parameters():
    network = (lambda key, x: jnp.asarray(START, jnp.float32), lambda params, x: x @ params)
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    trained = eg.Trainer(network, eg.losses.MeanSquaredError(), optimizer=tx)
    trained.fit(X.astype("f4"), Y.astype("f4"), batch_size=25, epochs=2, verbose=0)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.state.params)} == {np.dtype("float32")}


def test_a_scaled_loss_of_the_default_step():
    class Scaled(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params=jnp.asarray(START))

        def apply(self, key, inputs, training):
            return inputs @ self.params, self

        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            loss, state = super().managed_train_step(key, batch, batch_idx, epoch_idx)
            return 0.1 * loss, state

    trained = eg.Trainer(Scaled(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.0))
    history = trained.fit(X, Y, batch_size=16, verbose=0).history
    np.testing.assert_allclose(history["loss"], 0.1 * np.mean((X @ START - Y) ** 2), rtol=1e-12)


@pytest.mark.parametrize("rule", [eg.SWA(), eg.EMA(0.7)], ids=["swa", "ema"])
def test_averages_of_the_parameters(rule):
    trained = trainer(averaging=rule)
    history = [by_hand(50, epochs)[0] for epochs in range(1, 8)]
    trained.fit(X, Y, sample_weight=W, batch_size=50, epochs=7, shuffle=False, verbose=0)
    weights = 0.7 ** np.arange(6, -1, -1) if isinstance(rule, eg.EMA) else np.ones(7)
    averaged = np.average(history, axis=0, weights=weights)
    np.testing.assert_allclose(trained.predict(X, weights="averaged"), X @ averaged, rtol=1e-12)


def test_batch_normalisation_of_linen():
    """Its first statistics are float32; from the first step on they are float64, as in a loop of Flax."""
    network = nn.BatchNorm(use_running_average=False, momentum=0.8, use_bias=False, use_scale=False)
    target = np.zeros((50, 4))
    trained = eg.Trainer(network, eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trained.fit(X, target, batch_size=10, epochs=2, shuffle=False, verbose=0)
    mean, var = np.zeros(4), np.ones(4)
    for first in (*range(0, 50, 10), *range(0, 50, 10)):
        batch = X[first : first + 10]
        mean, var = 0.8 * mean + 0.2 * batch.mean(0), 0.8 * var + 0.2 * batch.var(0)
    assert trained.state.batch_stats["mean"].dtype == np.float64
    np.testing.assert_allclose(trained.state.batch_stats["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(trained.state.batch_stats["var"], var, rtol=1e-12)
