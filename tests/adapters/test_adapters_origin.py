"""Values to start from: the first state takes them over, and a later one finds what the user still holds."""

import gc
import pickle

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import elegy as eg
from elegy.adapters.origin import Origin, Weak

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = X[:, :2].copy()


def linen():
    return nn.Dense(2), nn.Dense(2).init(jax.random.key(7), X)


def haiku():
    function = hk.transform(lambda x: hk.Linear(2)(x))
    return function, function.init(jax.random.key(7), X)


def functions():
    return (lambda key: {"w": jnp.zeros((3, 2))}, lambda params, x: x @ params["w"]), {"w": np.ones((3, 2), np.float32)}


def nnx_module():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(7)), None


def equinox():
    return eqx.nn.Linear(3, 2, key=jax.random.key(7)), None


def trained(module, variables):
    trainer = eg.Trainer(module, eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), variables=variables)
    trainer.init_on_batch(X, Y)
    first = jax.tree.map(np.array, trainer.state.params)
    trainer.fit(X, Y, batch_size=4, verbose=0)
    return trainer, first


@pytest.mark.parametrize("make", [linen, haiku, functions, nnx_module, equinox])
def test_another_first_state_starts_from_the_values_that_the_user_has_kept(make):
    module, variables = make()
    trainer, first = trained(module, variables)
    assert not np.array_equal(jax.tree.leaves(trainer.state.params)[-1], jax.tree.leaves(first)[-1])
    trainer.init_on_batch(X, Y)
    jax.tree.map(np.testing.assert_array_equal, trainer.state.params, first)
    del module, variables
    gc.collect()
    with pytest.raises(ValueError, match="no longer exist elsewhere"):
        trainer.init_on_batch(X, Y)
    jax.tree.map(np.testing.assert_array_equal, trainer.state.params, first)


def test_without_given_values_another_first_state_is_drawn_again():
    trainer, first = trained(nn.Dense(2), None)
    trainer.init_on_batch(X, Y)
    jax.tree.map(np.testing.assert_array_equal, trainer.state.params, first)


def test_an_nnx_module_that_changes_before_the_first_state_starts_from_what_it_is_then():
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(7))
    trainer = eg.Trainer(module)
    module.kernel[...] = jnp.full((3, 2), 5.0)
    trainer.predict(X)
    np.testing.assert_array_equal(trainer.state.params["kernel"], np.full((3, 2), 5))


def test_a_pickled_origin_holds_nothing():
    given = {"w": jnp.ones(2)}
    assert Weak(given["w"])() is given["w"]
    with pytest.raises(ValueError, match="that Net started from"):
        pickle.loads(pickle.dumps(Origin(given))).recall("Net")
