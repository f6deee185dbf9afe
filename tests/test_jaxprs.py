"""Which traces are the same program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from elegy.jaxprs import arguments_read, keeps_rows, same_program, without_dead_code

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


def traced_for_5_and_2_rows(function):
    return [jax.make_jaxpr(function)(jnp.ones((rows, 4))) for rows in (5, 2)]


def attention(x):
    y = x.reshape(len(x), 2, 2)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(jnp.einsum("btd,bsd->bts", y, y)), y)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.relu(x @ jnp.ones((4, 3))),
        lambda x: (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6),
        attention,
        lambda x: jnp.concatenate([jnp.zeros((len(x), 1)), x], axis=1),
        lambda x: jnp.ones((5, 4))[x[:, 0].astype(int)],
        lambda x: (x, x.sum())[0],
    ],
)
def test_functions_of_each_row_are_seen_not_to_depend_on_their_number(function):
    assert keeps_rows(*traced_for_5_and_2_rows(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / len(x),
        lambda x: x ** len(x),
        lambda x: x * np.full((len(x), 1), 1 / len(x), np.float32),
        lambda x: x / jnp.ones_like(x).sum(),
        lambda x: x / jnp.isfinite(x).sum(),
        lambda x: x / jax.jit(lambda y: (y == y).sum())(x),
        lambda x: x + jnp.arange(len(x))[::-1, None] + jnp.arange(len(x))[:, None],
        lambda x: x + jnp.cumsum(jnp.ones((len(x), 1)), 0) + jnp.cumsum(jnp.ones((len(x), 1))[::-1], 0)[::-1],
        lambda x: jnp.ones((len(x), len(x))) @ jnp.ones((len(x), 1)) * x,
        lambda x: jax.lax.fori_loop(0, len(x), lambda i, y: y + 1, x),
        lambda x: jax.lax.scan(lambda c, row: (c + 1, row), 0, x)[0],
        lambda x: jnp.where(jax.lax.map(lambda row: row.sum(), x)[:, None].shape[0] > 3, x, 2 * x),
    ],
)
def test_functions_that_may_depend_on_the_number_of_rows_are_not(function):
    assert not keeps_rows(*traced_for_5_and_2_rows(function))


def looped(a, b, c):
    """In a scan, `a` depends on `b` in the next iteration only."""
    return jax.lax.scan(lambda carry, _: ((carry[0] + carry[1], carry[1]), None), (a, b), length=2)[0][0], c


@pytest.mark.parametrize(
    ("function", "read"),
    [
        (lambda a, b, c: (jax.jit(lambda x, y: (x * 2, y))(a, b)[0], c), {0}),
        (lambda a, b, c: (jax.checkpoint(lambda x, y: jnp.sin(x) + 0 * y)(a, c), b), {0, 2}),
        (lambda a, b, c: (jax.lax.cond(a > 0, jnp.sin, jnp.cos, b), c), {0, 1}),
        (looped, {0, 1}),
        (lambda a, b, c: (1.0, a * b * c), set()),
    ],
)
def test_a_result_reads_the_arguments_that_it_is_computed_from(function, read):
    assert arguments_read(jax.make_jaxpr(function)(1.0, 2.0, 3.0), [0]) == read


def test_equations_that_nothing_reads_are_removed_but_effects_stay():
    seen = []

    def function(key, x):
        jax.random.fold_in(key, 0)
        jax.debug.callback(lambda value: seen.append(float(value)), x + 1)
        return x * 2, key

    closed = jax.make_jaxpr(function)(jax.random.key(0), 3.0)
    kept = without_dead_code(closed)
    assert len(kept.eqns) == len(closed.eqns) - 1
    doubled, _ = jaxpr_as_fun(kept)(jax.random.key(0), 3.0)
    jax.effects_barrier()
    assert (float(doubled), seen) == (6.0, [4.0])
