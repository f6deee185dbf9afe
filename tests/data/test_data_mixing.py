"""Which functions look across the rows of a batch."""

import jax
import jax.numpy as jnp
import optax
import pytest

from elegy.data.mixing import mixes_rows

X = jnp.ones((6, 4, 4))
W = jnp.ones((6, 4))


def attention(w, x):
    scores = jnp.einsum("btd,bsd->bts", x @ w[:4], x)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), x).reshape(len(x), -1)


def over_time(w, x):
    return jax.lax.scan(lambda c, t: (c + t, c), jnp.zeros((len(x), 4)), x.swapaxes(0, 1))[1].swapaxes(0, 1)


APART = {
    "dense": lambda w, x: jax.nn.relu(x.reshape(-1, 4) @ w[:4]).reshape(x.shape),
    "layer norm": lambda w, x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True),
    "attention": attention,
    "over time": over_time,
    "vmap": lambda w, x: jax.vmap(lambda row: row.sum() + jnp.sort(row, 0).cumsum(0))(x),
    "dropout": lambda w, x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape),
    "parameters": lambda w, x: x + w.sum(0),
    "cross entropy": lambda w, x: optax.softmax_cross_entropy(x.mean(1), x.mean(1)),
    "map": lambda w, x: jax.lax.map(lambda row: row.sum(), x),
    "convolution": lambda w, x: jax.lax.conv(x[..., None], jnp.ones((2, 4, 3, 1)), (1, 1), "SAME"),
}

TOGETHER = {
    "mean": lambda w, x: x - x.mean(0),
    "within jit": jax.jit(lambda w, x: x - jax.jit(jnp.mean)(x)),
    "maximum": lambda w, x: x / x.max(),
    "softmax": lambda w, x: jax.nn.softmax(x, axis=0),
    "products": lambda w, x: x[:, 0] @ x[:, 0].T,
    "contraction": lambda w, x: x[:, 0] @ (x[:, 0].T @ x[:, 0]),
    "differences": lambda w, x: (x[:, None, 0] - x[None, :, 0]).sum(-1),
    "sort": lambda w, x: jnp.sort(x, axis=0),
    "sum so far": lambda w, x: jnp.cumsum(x, axis=0),
    "backwards": lambda w, x: x[::-1],
    "flattened": lambda w, x: x - x.reshape(-1).mean(),
    "carried": lambda w, x: jax.lax.scan(lambda c, row: (c + row, c), x[0], x)[1],
    "one size": lambda w, x: x.reshape(6, 16),
    "pmean": lambda w, x: jax.vmap(lambda row: row - jax.lax.pmean(row, "batch"), axis_name="batch")(x),
}


@pytest.mark.parametrize("function", APART.values(), ids=APART)
def test_rows_apart(function):
    assert not mixes_rows(function, W, X)


@pytest.mark.parametrize("function", TOGETHER.values(), ids=TOGETHER)
def test_rows_together(function):
    assert mixes_rows(function, W, X)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_number_of_rows_does_not_matter(count):
    x = jax.ShapeDtypeStruct((count, 4, 4), jnp.float32)
    assert not mixes_rows(APART["layer norm"], W, x)
    assert mixes_rows(TOGETHER["mean"], W, x)
