"""Which training steps of a population's members run one after another."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from elegy.engine.member_turns import mean_width, members_in_turn


def of(module, inputs, platform="cpu"):
    params = jax.eval_shape(module.init, jax.random.key(0), inputs)

    def loss(params):
        return module.apply(params, inputs).sum()

    return members_in_turn(jax.make_jaxpr(jax.grad(loss))(params), params, platform)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Dense(300), (64, 64), True),
        (nn.Dense(64), (32, 64), False),  # little work
        (nn.Dense(32), (64, 784), False),  # narrow
        (nn.Sequential([nn.Dense(64) for _ in range(6)]), (32, 64), False),  # little work in each product
        (nn.Conv(64, (3, 3)), (8, 28, 28, 64), False),
    ],
)
def test_wide_steps_with_much_work_run_one_after_another(module, shape, expected):
    inputs = jnp.zeros(shape)
    assert of(module, inputs) == expected
    assert not of(module, inputs, "gpu")


def test_the_width_of_parameters():
    def shaped(*shapes):
        return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    assert mean_width(shaped((784, 32), (32,), ())) == 32
    assert mean_width(shaped((512, 8, 64))) == 512
    assert mean_width(shaped((4, 4), (4, 1, 12))) == 4
    assert mean_width(shaped((10, 10), (20, 30))) == (100 * 10 + 600 * 20) / 700
    assert mean_width(shaped((7,), ())) == mean_width([]) == 0
