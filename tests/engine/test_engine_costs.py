"""The counted operations of a training step, against counts by hand."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from some_cases import some

import elegy as eg

F32, I32 = jnp.float32, jnp.int32


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(10)(x)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2, padding="VALID")(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(128)(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    rolled: bool

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(256, 128)(tokens)
        if self.rolled:
            block = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = block()(x, None)
        else:
            for _ in range(3):
                x, _ = Block()(x, None)
        return nn.Dense(256)(x)


def mlp(rows):
    """Each product runs forward, for the gradient of the weights, and for that of its input if that has parameters."""
    sizes = [64, 256, 256, 256, 10]
    products = [2 * rows * a * b for a, b in itertools.pairwise(sizes)]
    return 3 * sum(products) - products[0]


def conv_net(rows):
    """Only products with a pixel of the image count: 3 n - 2 of the 3 n along an axis of n pixels with padding 1."""
    first = 2 * rows * (3 * 28 - 2) ** 2 * 3 * 32
    second, dense = 2 * rows * 13**2 * 9 * 32 * 64, 2 * rows * 13**2 * 64 * 10
    return 3 * (first + second + dense) - first


def transformer(rows, length=64):
    tokens = rows * length
    block = 2 * tokens * (4 * 128 * 128 + 2 * 128 * 512) + 2 * 2 * rows * length**2 * 128
    return 3 * (3 * block + 2 * tokens * 128 * 256)


CASES = {
    "mlp": (MLP(), ((1024, 64), F32), ((1024,), I32), mlp(1024)),
    "conv net": (ConvNet(), ((64, 28, 28, 3), F32), ((64,), I32), conv_net(64)),
    "transformer": (Transformer(False), ((64, 64), I32), ((64, 64), I32), transformer(64)),
    "transformer with a scan over its blocks": (Transformer(True), ((64, 64), I32), ((64, 64), I32), transformer(64)),
}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_of_a_count_by_hand(case, accumulate):
    module, x, y, expected = CASES[case]
    trainer = eg.Trainer(module, eg.losses.CrossEntropy(), optimizer=optax.sgd(1e-3), accumulate=accumulate)
    batch = tuple(jax.ShapeDtypeStruct(*spec) for spec in (x, y))
    session = trainer._session
    program = session.executor.program("train", session.planned(batch), batch, None)
    assert program.flops == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("strategy", some(["jit", "data_parallel", "sharded", "fsdp"], 2))
def test_the_last_step_of_a_trainer_has_its_operations(strategy):
    trainer = eg.Trainer(MLP(), eg.losses.CrossEntropy(), optimizer=optax.sgd(1e-3), strategy=strategy)
    with pytest.raises(RuntimeError, match="no compiled training step has run"):
        _ = trainer.step_flops
    x, y = np.zeros((512, 64), np.float32), np.zeros(512, int)
    trainer.fit(x, y, batch_size=512, verbose=0)
    assert trainer.step_flops == pytest.approx(mlp(512), rel=0.05)
