"""JAX's settings that a `with` block changes: between calls of a trainer, and for the threads that read its data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, regression

import elegy as eg

X, Y = regression(32)
ONE = Y[:, :1]


class Scaled(eg.ElegyModule):
    """Reads a setting while it is traced, as every `jnp.dot` does; on a CPU, all precisions have the same products."""

    def init(self, key, inputs):
        return self.replace(params={"w": jnp.ones(inputs.shape[-1])})

    def apply(self, key, inputs, training):
        factor = 3.0 if jax.config.jax_default_matmul_precision == "highest" else 1.0
        return factor * inputs @ self.params["w"][:, None], self


def test_a_step_is_traced_anew_for_other_settings():
    trainer = eg.Trainer(Scaled(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.0))
    for factor, precision in ((1, None), (3, "highest"), (1, "float32")):
        with jax.default_matmul_precision(precision):
            expected = factor * X.sum(-1, keepdims=True)
            loss = np.mean((expected - ONE) ** 2)
            np.testing.assert_allclose(trainer.predict(X), expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(trainer.predict_on_batch(X), expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(trainer.evaluate(X, ONE, verbose=0)["loss"], loss, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(trainer.fit(X, ONE, verbose=0).history["loss"], [loss], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(trainer.test_on_batch(X, ONE)["loss"], loss, rtol=1e-5, atol=1e-6)
    assert trainer._session.executor.traces["pred"] == 3


class Doubles:
    """A data set that makes its examples with JAX."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return jnp.asarray(i + 1e-12)


class Same(eg.ElegyModule):
    def init(self, key, inputs):
        return self

    def apply(self, key, inputs, training):
        return inputs, self


@pytest.mark.parametrize("strategy", ["jit", "sharded", "data_parallel"])
def test_workers_read_64_bits(strategy):
    with jax.enable_x64(True):
        trainer = eg.Trainer(Same(), strategy=strategy)
        found = trainer.predict(eg.data.Examples(Doubles(), workers=2), batch_size=4)
    np.testing.assert_array_equal(found, np.arange(8) + 1e-12)


def test_a_trainer_stays_on_its_device():
    first, second = jax.devices()[:2]
    trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    with jax.default_device(second):
        trainer.fit(X, Y, verbose=0)
    trainer.fit(X, Y, verbose=0, epochs=2)
    with jax.default_device(first):
        trainer.train_on_batch(X, Y)
        trainer.evaluate(X, Y, verbose=0)
        trainer.predict(X)
    assert {leaf.device for leaf in jax.tree.leaves(trainer.state.params)} == {second}


def test_leaks_are_checked():
    """`jax.checking_leaks` is for the user's code: nothing of a trace outlives it here."""
    with jax.checking_leaks():
        trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), accumulate=2)
        trainer.fit(X, Y, verbose=0)


@pytest.mark.parametrize("strategy", ["jit", "fsdp", "data_parallel"])
def test_internal_checks_of_jax_pass(strategy):
    jax.config.update("jax_enable_checks", True)
    try:
        trainer = eg.Trainer(High(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), strategy=strategy)
        trainer.fit(X, Y, verbose=0)
    finally:
        jax.config.update("jax_enable_checks", False)
