"""Which traces are the same program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.jaxprs import same_program

X = np.ones((3, 4), np.float32)
doubled = jax.custom_vjp(lambda x: x * 2)
doubled.defvjp(lambda x: (x * 2, x), lambda residual, g: (g * 2,))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.LayerNorm()(nn.Dense(4)(x)))
        y = jax.lax.cond(y.sum() > 0, doubled, jax.checkpoint(jnp.tanh), y)
        return nn.RNN(nn.LSTMCell(2))(jax.nn.softmax(nn.gelu(y))[None])


def scaled(by):
    return lambda x: x * np.full(4, by, np.float32)


def called(function):
    return lambda x: jax.pure_callback(function, x, x)


def test_a_function_that_is_traced_again_is_the_same_program():
    params = Net().init(jax.random.key(0), X)
    first, second = (jax.make_jaxpr(lambda p, x: Net().apply(p, x))(params, X) for _ in range(2))
    assert same_program(first, second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (jnp.sin, jnp.cos),
        (lambda x: x - 1, lambda x: 1 - x),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x + x[0], lambda x: x[0] + x),
        (lambda x: jnp.cumsum(x), lambda x: jnp.cumsum(x, 0)),
        (lambda x: jax.lax.cumsum(x), lambda x: jax.lax.cumsum(x, reverse=True)),
        (scaled(2), scaled(3)),
        (called(np.sin), called(np.cos)),
        (jax.jit(jnp.sin), jax.jit(jnp.cos)),
        (jax.checkpoint(scaled(2)), jax.checkpoint(scaled(3))),
        (lambda x: jax.lax.cond(True, jnp.sin, jnp.cos, x), lambda x: jax.lax.cond(True, jnp.cos, jnp.sin, x)),
        (lambda x: (x, x + 1), lambda x: (x + 1, x)),
        (lambda x: jax.lax.map(jnp.sin, x), lambda x: jax.lax.map(jnp.cos, x)),
    ],
)
def test_functions_that_compute_different_things_are_not(one, other):
    assert not same_program(jax.make_jaxpr(one)(X), jax.make_jaxpr(other)(X))


def test_another_number_of_rows_is_another_program():
    assert not same_program(jax.make_jaxpr(jnp.sin)(X), jax.make_jaxpr(jnp.sin)(X[:2]))
