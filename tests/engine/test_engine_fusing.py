"""How much work a traced step is, and how many steps go into one execution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from elegy.engine.fusing import steps_per_execution, work

X = jnp.ones((2, 8, 8, 4))


def traced(function, *arguments):
    return jax.make_jaxpr(function)(*arguments)


def test_products_count_two_operations_for_each_multiplication_and_addition():
    flops, convolves = work(traced(jax.jit(lambda a, b: jnp.tanh(a @ b)), jnp.ones((3, 5)), jnp.ones((5, 7))))
    assert (flops, convolves) == (2 * 3 * 5 * 7 + 3 * 7, False)


def test_a_loop_counts_its_body_as_often_as_it_runs():
    def loop(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=6)[0]

    assert work(traced(loop, jnp.ones((4, 4))))[0] == 6 * 2 * 4**3


def test_convolutions_are_seen_inside_of_calls():
    layer = nn.Conv(8, (3, 3), use_bias=False)
    flops, convolves = work(traced(jax.jit(layer.apply), layer.init(jax.random.key(0), X), X))
    assert (flops, convolves) == (2 * (2 * 8 * 8 * 8) * 3 * 3 * 4, True)


@pytest.mark.parametrize("function", [jnp.sort, jnp.linalg.qr, lambda x: jax.lax.while_loop(jnp.any, jnp.sign, x)])
def test_what_is_unknown_counts_what_it_writes(function):
    assert work(traced(function, jnp.ones((4, 4))))[0] >= 16


def test_heavy_steps_and_convolutions_on_the_cpu_run_alone():
    small, large = (traced(jnp.dot, jnp.ones((n, n)), jnp.ones((n, n))) for n in (4, 1024))
    layer = nn.Conv(8, (3, 3))
    convolution = traced(layer.apply, layer.init(jax.random.key(0), X), X)
    assert [steps_per_execution(one, "cpu") for one in (small, large, convolution)] == [64, 1, 1]
    assert steps_per_execution(convolution, "gpu") == 64
