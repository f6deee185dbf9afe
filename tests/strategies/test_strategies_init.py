"""The first state is made where a strategy wants it, and shares no memory with what it was made from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import compilations

import elegy as eg
from elegy.strategies import FSDP, DataParallel, Jit, Sharded

STRATEGIES = {
    "jit": lambda: Jit(),
    "another device": lambda: Jit(jax.devices()[5]),
    "data_parallel": lambda: DataParallel(4),
    "sharded": lambda: Sharded({"data": 2, "model": 2}),
    "fsdp": lambda: FSDP({"data": 8}, min_size=8),
}
KINDS = {
    "uncommitted": lambda value: jnp.asarray(value),
    "committed": lambda value: jax.device_put(value, jax.devices()[0]),
    "elsewhere": lambda value: jax.device_put(value, jax.devices()[6]),
    "numpy": lambda value: np.array(value),
}
VALUES = np.arange(24, dtype=np.float32).reshape(8, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_given_values_are_copied_and_the_rest_is_computed(name, kind):
    held, given, key = KINDS[kind](VALUES), KINDS[kind](VALUES + 1), jax.random.key(3)
    make = STRATEGIES[name]().compile_init(
        lambda given, key, x: {
            "given": given,
            "held": held,
            "cast": given.astype("float16"),
            "drawn": jax.random.normal(key, x.shape),
            "x": x,
        }
    )
    state = make(given, key, np.ones((8, 2), np.float32))
    expected = {"given": VALUES + 1, "cast": VALUES + 1, "held": VALUES, "x": np.ones((8, 2))}
    np.testing.assert_allclose(state["drawn"], jax.random.normal(key, (8, 2)), rtol=1e-5)  # compiled otherwise
    for leaf in jax.tree.leaves(state):
        leaf.delete()  # as a step does that consumes its buffers
    state = make(given, key, np.ones((8, 2), np.float32))
    jax.tree.map(np.testing.assert_array_equal, {name: state[name] for name in expected}, expected)
    np.testing.assert_array_equal(given, VALUES + 1)
    np.testing.assert_array_equal(held, VALUES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_leaves_the_variables_of_the_user_alone(name):
    variables = {"w": jnp.ones((3, 1))}
    module = (lambda key: {"w": jnp.zeros((3, 1))}, lambda params, x: x @ params["w"])
    trainer = eg.Trainer(
        module,
        eg.losses.MeanSquaredError(),
        optimizer=optax.sgd(1e-3),
        variables=variables,
        strategy=STRATEGIES[name](),
    )
    trainer.fit(VALUES, VALUES.sum(1, keepdims=True) * 2, epochs=2, batch_size=8, verbose=0)
    np.testing.assert_array_equal(variables["w"], np.ones((3, 1)))
    assert not np.allclose(trainer.state.params["w"], variables["w"])


@pytest.mark.parametrize("seed", [0, 42, 2**31 - 1, 2**31, 2**32 + 5, -1], ids=str)
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_the_first_key_is_that_of_jax(impl, seed):
    with jax.default_prng_impl(impl):
        ours, theirs = Jit().first_key(seed), jax.random.key(seed)
        assert (ours.dtype, ours.sharding, ours.committed) == (theirs.dtype, theirs.sharding, False)
        np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))
        np.testing.assert_array_equal(jax.random.normal(ours, (3,)), jax.random.normal(theirs, (3,)))


def test_the_first_key_compiles_nothing():
    jax.clear_caches()
    with compilations() as names:
        Jit().first_key(17)
    assert not names
