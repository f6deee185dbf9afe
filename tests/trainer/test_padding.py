"""Short batches are filled up only where the padding leaves no trace, and weights go where they can."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import compilations
from flax import nnx

import elegy as eg

rng = np.random.default_rng(0)
X = rng.normal(size=(10, 3)).astype(np.float32)
Y = rng.normal(size=(10, 2)).astype(np.float32)
W = rng.uniform(0.1, 2, 10).astype(np.float32)
MSE = eg.losses.MeanSquaredError


class Running(nn.Module):
    """Keeps a mean and a count of its own, in collections that are no batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        mean = self.variable("running", "mean", lambda: jnp.zeros(3))
        seen = self.variable("seen", "n", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            mean.value = 0.5 * mean.value + 0.5 * x.mean(0)
            seen.value += x.shape[0]
        return nn.Dense(2)(x)


def test_state_of_a_module_sees_no_padding():
    trainer = eg.Trainer(Running(), MSE(), optimizer=optax.sgd(0.01))
    trainer.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    mean = np.zeros(3)
    for start in (0, 4, 8):
        mean = 0.5 * mean + 0.5 * X[start : start + 4].mean(0)
    np.testing.assert_allclose(trainer.state.collections["running"]["mean"], mean, rtol=1e-6)
    assert trainer.state.collections["seen"]["n"] == 10


def test_normalisation_by_the_batch_outside_of_training_sees_no_padding():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(x)

    trainer = eg.Trainer(Net(), MSE())
    outputs = trainer.predict(X, batch_size=4)
    parts = [X[i : i + 4] for i in (0, 4, 8)]
    expected = np.concatenate([(p - p.mean(0)) / np.sqrt(p.var(0) + 1e-5) for p in parts])
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    loss = trainer.evaluate(X, X, batch_size=4, verbose=0)["loss"]
    np.testing.assert_allclose(loss, np.mean((expected - X) ** 2), rtol=1e-5)


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.dropout = nnx.Linear(3, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x))


def haiku_dropout(x, is_training=False):
    y = hk.Linear(2)(x)
    return hk.dropout(hk.next_rng_key(), 0.5, y) if is_training else y


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential([nn.Dense(4), nn.Dropout(0.5, deterministic=False), nn.Dense(2)]),
        Dropping(nnx.Rngs(0)),
        hk.transform(haiku_dropout),
        eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)),
    ],
    ids=["linen", "nnx", "haiku", "equinox"],
)
def test_everybody_else_trains_on_short_batches_with_one_program(module):
    trainer = eg.Trainer(module, MSE(), optimizer=optax.sgd(0.01))
    trainer.fit(X, Y, batch_size=4, epochs=2, validation_data=[(X[:4], Y[:4]), (X[:3], Y[:3])], verbose=0)
    trainer.predict(X, batch_size=4)  # one short batch compiles faster than it is seen that it may be padded
    assert trainer._session.executor.traces == {"train": 1, "test": 1, "pred": 2}


@pytest.mark.parametrize(("rate", "probes"), [(0.0, 1), (0.5, 3)], ids=["alike", "dropout in training"])
def test_short_batches_of_training_and_evaluation_are_compiled_with_the_full_ones(rate, probes):
    """The forward pass is compiled once; for dropout in training for a second number of rows, and for evaluation."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, training=False):
            return nn.Dense(2)(nn.Dropout(rate, deterministic=not training)(nn.relu(nn.Dense(4)(x))))

    trainer = eg.Trainer(Net(), MSE(), eg.metrics.MeanAbsoluteError(), optimizer=optax.sgd(0.01))
    with compilations() as names:
        history = trainer.fit(X, Y, batch_size=4, epochs=2, validation_data=(X[:7], Y[:7]), verbose=0).history
    found = [name.removeprefix("jit(").removesuffix(")").removesuffix("s") for name in names]
    assert [found.count(name) for name in ("train_step", "test_step", "row_independence")] == [1, 1, probes]
    expected = np.mean((trainer.predict(X[:7]) - Y[:7]) ** 2)
    np.testing.assert_allclose(history["val_loss"][-1], expected, rtol=1e-6)


class FixedSize(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(5, 3))


def test_a_module_for_batches_of_one_size_is_not_called_with_another():
    trainer = eg.Trainer(FixedSize(), MSE(), optimizer=optax.sgd(0.01))
    assert len(trainer.fit(X, Y, batch_size=5, epochs=2, verbose=0).epoch) == 2


def weighted(target, preds, sample_weight):
    return sample_weight * ((target - preds) ** 2).mean(-1)


def counting(target, preds, examples):
    return ((target - preds) ** 2).mean(-1) * examples / examples


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"a": nn.Dense(2)(x), "b": nn.Dense(2)(x)}


@pytest.mark.parametrize("size", [5, 4])
def test_losses_get_what_they_name_whether_batches_are_filled_up_or_not(size):
    def loss(loss, module=None, y=Y, weight=None):
        trainer = eg.Trainer(module or nn.Dense(2), loss, optimizer=optax.sgd(0.0))
        value = trainer.fit(X, y, sample_weight=weight, batch_size=size, verbose=0).history["loss"][0]
        return value, jax.tree.map(np.asarray, trainer.predict(X))

    value, preds = loss(weighted, weight=W)
    np.testing.assert_allclose(value, np.average(((preds - Y) ** 2).mean(-1), weights=W), rtol=1e-5)
    value, preds = loss(counting)
    np.testing.assert_allclose(value, np.mean((preds - Y) ** 2), rtol=1e-5)
    indexed = MSE().index_into(target="a", preds="a", sample_weight="a")
    value, preds = loss(indexed, Two(), {"a": Y, "b": Y}, {"a": W, "b": np.ones(10, np.float32)})
    np.testing.assert_allclose(value, np.average(((preds["a"] - Y) ** 2).mean(-1), weights=W), rtol=1e-5)


def test_an_axis_that_is_as_long_as_the_batch_by_chance_is_not_an_axis_of_examples():
    y = rng.normal(size=(10, 4)).astype(np.float32)
    trainer = eg.Trainer(nn.Dense(4), lambda target, preds: ((target - preds) ** 2).mean(0), optimizer=optax.sgd(0.0))
    trainer.fit(X, y, batch_size=4, shuffle=False, verbose=0)
    assert [probe.independent for probe in trainer._session.executor._probes.values()] == [False]


def test_a_scalar_that_weights_have_no_part_in_is_warned_of():
    trainer = eg.Trainer(nn.Dense(2), lambda target, preds: jnp.mean((target - preds) ** 2), optimizer=optax.sgd(0.1))
    with pytest.warns(UserWarning, match=r"returned a scalar, so sample weights .* name a parameter"):
        trainer.fit(X, Y, sample_weight=W, batch_size=5, verbose=0)


def test_a_penalty_on_parameters_is_not_warned_of():
    losses = [MSE(), eg.regularizers.L2(0.1), lambda parameters: jnp.sum(parameters["bias"] ** 2)]
    eg.Trainer(nn.Dense(2), losses, optimizer=optax.sgd(0.1)).fit(X, Y, sample_weight=W, batch_size=4, verbose=0)
