"""Losses that look across examples, or at their number, are given no padding: they equal those of eager steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg

rng = np.random.default_rng(0)
X = rng.normal(size=(10, 4)).astype(np.float32)
Y = rng.normal(size=(10, 3)).astype(np.float32)


def squares(target, preds):
    return jnp.sum((preds - target) ** 2, -1)


def by_rows(target, preds):
    return squares(target, preds) / preds.shape[0]


def rolled(target, preds):
    return squares(jnp.roll(target, -1, axis=0), preds)


def against_the_last(target, preds):
    return squares(target[-1:], preds)


def by_group(target, preds):
    values, ids = squares(target, preds), (target[:, 0] > 0).astype(int)
    return values / jax.ops.segment_sum(jnp.ones_like(values), ids, 2)[ids]


def hard(target, preds):
    values = squares(target, preds)
    return jnp.where(values >= jax.lax.top_k(values, 2)[0][-1], values, 0.0)


def so_far(target, preds):
    return jax.lax.associative_scan(jnp.add, squares(target, preds))


def trained(function, reduction, strategy):
    class Value(eg.losses.Loss):
        def call(self, target, preds):
            return function(target, preds)

    trainer = eg.Trainer(nn.Dense(3), Value(reduction=reduction), optimizer=optax.sgd(0.05), strategy=strategy, seed=0)
    history = trainer.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    return history.history["loss"][0], trainer


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("function", [by_rows, rolled, against_the_last, by_group, hard, so_far])
@pytest.mark.some(5)
def test_losses_across_examples_see_no_padding(function, reduction):
    (value, trainer), (expected, eager) = (trained(function, reduction, strategy) for strategy in ("jit", "eager"))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for mine, theirs in zip(*(jax.tree.leaves(one.state.params) for one in (trainer, eager)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    assert [probe.independent for probe in trainer._session.executor._probes.values()] == [False]


def test_a_loss_of_each_example_still_compiles_once():
    trainer = trained(squares, "mean", "jit")[1]
    assert trainer._session.executor.traces["train"] == 1


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.constant(2.0), ())
        return {"y": nn.Dense(3)(x), "scale": scale, "codebook": self.param("codebook", nn.initializers.ones, (7, 3))}


def scaled(target, preds):
    return squares(target, preds["y"] * preds["scale"] * preds["codebook"].mean(0))


def test_outputs_without_rows():
    trainer = eg.Trainer(Scaled(), scaled, optimizer=optax.sgd(0.0))
    value = trainer.fit(X, Y, batch_size=4, verbose=0).history["loss"][0]
    params = jax.tree.map(np.asarray, trainer.state.params)
    outputs = 2 * (X @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    np.testing.assert_allclose(value, ((outputs - Y) ** 2).sum(-1).mean(), rtol=1e-5)
    assert trainer._session.executor.traces["train"] == 1


class Hidden(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(4)(x)))


def penalized(target, preds, parameters):
    return (target - preds[:, 0]) ** 2 + sum(jnp.sum(p**2) for p in jax.tree.leaves(parameters))


def test_kernels_as_wide_as_the_batch_is_long():
    trainer = eg.Trainer(Hidden(), penalized, optimizer=optax.sgd(0.0))
    value = trainer.fit(X, Y[:, 0], batch_size=4, verbose=0).history["loss"][0]
    penalty = sum(np.sum(np.asarray(p) ** 2) for p in jax.tree.leaves(trainer.state.params))
    expected = np.mean((Y[:, 0] - trainer.predict(X)[:, 0]) ** 2) + penalty
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_functions_of_numpy_run_eagerly():
    def error(target, preds):
        return float(np.mean(np.abs(np.asarray(target) - np.asarray(preds)[:, 0])))

    trainer = eg.Trainer(nn.Dense(1), metrics=error, strategy="eager")
    value = trainer.evaluate(X, Y[:, 0], batch_size=5, verbose=0)["error"]
    np.testing.assert_allclose(value, np.abs(Y[:, 0] - trainer.predict(X)[:, 0]).mean(), rtol=1e-5)


def test_labels_that_are_sorted_hide_nothing():
    def beside_the_next_label(target, preds):
        return (jnp.roll(target, -1) - preds[:, 0]) ** 2

    trainer = eg.Trainer(nn.Dense(3), beside_the_next_label, optimizer=optax.sgd(0.1))
    trainer.fit(np.tile(X, (2, 1)), np.repeat([0.0, 1.0], 10), batch_size=6, shuffle=False, verbose=0)
    assert [probe.independent for probe in trainer._session.executor._probes.values()] == [False]
