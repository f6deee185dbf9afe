"""Which functions look across the rows of a batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elegy.data.mixing import mixes_rows
from elegy.losses import (
    CosineSimilarity,
    CrossEntropy,
    Huber,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
)

X = jnp.ones((6, 4, 4))
W = jnp.ones((6, 4))


def attention(w, x):
    scores = jnp.einsum("btd,bsd->bts", x @ w[:4], x)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), x).reshape(len(x), -1)


def over_time(w, x):
    return jax.lax.scan(lambda c, t: (c + t, c), jnp.zeros((len(x), 4)), x.swapaxes(0, 1))[1].swapaxes(0, 1)


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))


def labels(x):
    return x[:, 0].astype(int)


def per_group(w, x):
    ids = (x[:, 0, 0] > 0.5).astype(int)
    return x[:, 0, 0] / jax.ops.segment_sum(jnp.ones(len(x)), ids, 2)[ids]


def hard(w, x):
    return jnp.where(x[:, 0, 0] >= jax.lax.top_k(x[:, 0, 0], 2)[0][-1], x[:, 0, 0], 0)


@jax.jit
def size(x):
    return x.shape[0]


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
    "labels": lambda w, x: optax.softmax_cross_entropy_with_integer_labels(x, labels(x)),
    "one hot": lambda w, x: optax.softmax_cross_entropy(
        x, optax.smooth_labels(jax.nn.one_hot(labels(x), x.shape[-1]), 0.1)
    ),
    "log softmax": lambda w, x: -jnp.take_along_axis(jax.nn.log_softmax(x), labels(x)[..., None], axis=-1)[..., 0],
    "gather of a row": lambda w, x: jax.vmap(lambda row: jax.nn.log_softmax(row)[row[0, 0].astype(int)])(x),
    "embedding": lambda w, x: w[labels(x)] + jnp.take(w, labels(x), axis=0, mode="clip"),
    "constant columns": lambda w, x: x[:, [0, 2]] * np.array([1.0, 2.0])[:, None] + x[:, :2] - x[:, -1:],
    "remat": jax.checkpoint(lambda w, x: jnp.tanh(x @ w[:4])),
    "custom jvp": lambda w, x: jax.nn.relu(x) + jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.softplus(x),
    "custom vjp": lambda w, x: clipped(x),
    "jit": jax.jit(lambda w, x: jnp.where(x > 0, x, jnp.linalg.norm(x, axis=-1, keepdims=True))),
    "write": lambda w, x: x.at[:, 0].set(0).at[:, :, 1].add(1.0),
    "write of a row": lambda w, x: jax.vmap(lambda row: row.at[row[0, 0].astype(int)].set(0))(x),
    "pooling": lambda w, x: nn.max_pool(x, (2,), (2,)) + nn.avg_pool(x, (2,), (2,)),
    "class token": lambda w, x: jnp.concatenate([jnp.tile(w[None, :1], (len(x), 1, 1)), x], axis=1),
    "padding within rows": lambda w, x: jnp.pad(x, ((0, 0), (1, 1), (0, 0)))[:, ::2][:, ::-1],
    "top of a row": lambda w, x: jax.lax.top_k(x, 2)[0] + jnp.argmax(x, -1, keepdims=True),
    "stack": lambda w, x: jnp.stack([x, x]).swapaxes(0, 1),
    "steps": lambda w, x: jax.lax.fori_loop(0, 3, lambda i, y: y * w[i], x),
    "while": lambda w, x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, x))[1],
    "cond": lambda w, x: jax.lax.cond(w.sum() > 0, jnp.sin, jnp.cos, x),
    "focal": lambda w, x: optax.sigmoid_focal_loss(x, jax.nn.sigmoid(x), alpha=0.2),
    "ctc": lambda w, x: optax.ctc_loss(x, jnp.zeros(x.shape[:2]), jnp.ones((len(x), 2), int), jnp.zeros((len(x), 2))),
    "time first": lambda w, x: jnp.swapaxes(jnp.cumsum(jnp.swapaxes(x, 0, 1), axis=0), 0, 1),
    "fourier": lambda w, x: jnp.fft.rfft(x).real,
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
    "number of rows": lambda w, x: x / x.shape[0],
    "number of rows within jit": lambda w, x: x / size(x),
    "number of rows as an exponent": lambda w, x: x ** x.shape[0],
    "a constant by rows": lambda w, x: x * np.full((len(x), 1, 1), 1 / len(x)),
    "steps by rows": lambda w, x: jax.lax.fori_loop(0, len(x), lambda i, y: y + 1, x),
    "rolled": lambda w, x: x - jnp.roll(x, -1, axis=0),
    "rolled within jit": jax.jit(lambda w, x: x - jnp.roll(x, 1, axis=0)),
    "by group": per_group,
    "hard examples": hard,
    "the first": lambda w, x: x - x[:1],
    "the last": lambda w, x: x - x[-1],
    "shifted": lambda w, x: x - jnp.pad(x, ((1, 0), (0, 0), (0, 0)))[:-1],
    "pooled": lambda w, x: nn.avg_pool(x[None], (3, 1), (1, 1), "SAME")[0],
    "windows": lambda w, x: jax.lax.conv(x[None], jnp.ones((6, 6, 3)), (1,), "SAME")[0],
    "picked": lambda w, x: x[labels(x)[:, 0]],
    "scattered": lambda w, x: jnp.zeros_like(x).at[labels(x)[:, 0]].add(x),
    "solved": lambda w, x: jnp.linalg.solve(x[:, 0] @ x[:, 0].T, x[:, 0]),
    "spectrum": lambda w, x: jnp.fft.fft(x, axis=0).real,
    "rows as columns": lambda w, x: x.swapaxes(0, 1).reshape(x.shape),
    "associative": lambda w, x: jax.lax.associative_scan(jnp.add, x),
    "callback": lambda w, x: jax.pure_callback(lambda x: x - x.mean(0), x, x),
    "pmean": lambda w, x: jax.vmap(lambda row: row - jax.lax.pmean(row, "batch"), axis_name="batch")(x),
}


@pytest.mark.parametrize("function", APART.values(), ids=APART)
def test_rows_apart(function):
    assert not mixes_rows(function, W, X, 6)


@pytest.mark.parametrize("function", TOGETHER.values(), ids=TOGETHER)
def test_rows_together(function):
    assert mixes_rows(function, W, X, 6)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_number_of_rows_does_not_matter(count):
    x = jax.ShapeDtypeStruct((count, 4, 4), jnp.float32)
    assert not mixes_rows(APART["layer norm"], W, x, count)
    assert mixes_rows(TOGETHER["mean"], W, x, count)


LOSSES = [
    (CrossEntropy(binary=True), (6, 4), (6, 4)),
    (CrossEntropy(binary=True, from_logits=False, label_smoothing=0.1), (6,), (6, 1)),
    (CosineSimilarity(), (6, 4), (6, 4)),
    (CrossEntropy(), (6,), (6, 4)),
    (CrossEntropy(label_smoothing=0.1), (6, 5), (6, 5, 4)),
    (CrossEntropy(), (6, 4), (6, 4)),
    (Huber(), (6, 4), (6, 4)),
    (MeanAbsoluteError(), (6, 4), (6, 4)),
    (MeanAbsolutePercentageError(), (6, 4), (6, 4)),
    (MeanSquaredError(), (6, 4), (6, 4)),
    (MeanSquaredError(), (6,), (6, 1)),
    (MeanSquaredLogarithmicError(), (6, 4), (6, 4)),
]


@pytest.mark.parametrize(("loss", "target", "preds"), LOSSES, ids=lambda v: getattr(v, "name", str(v)))
def test_losses_take_rows_apart(loss, target, preds):
    integer = isinstance(loss, CrossEntropy) and not loss.binary and target != preds
    target, preds, weight, mask = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in ((target, int if integer else "f4"), (preds, "f4"), ((6,), "f4"), ((6,), bool))
    )
    assert loss.maskable(6, target=target, preds=preds, sample_weight=weight, mask=mask)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.relu(nn.Conv(8, (3, 3))(x[..., None])))
        x = nn.GroupNorm(2)(nn.ConvTranspose(4, (2, 2), (2, 2))(nn.max_pool(x, (2, 2), (2, 2))))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1)))


class Words(nn.Module):
    @nn.compact
    def __call__(self, x):
        ids = x[..., 0].astype(int)
        y = nn.Embed(10, 8)(ids) + self.param("at", nn.initializers.normal(), (1, 4, 8))
        mask = nn.combine_masks(nn.make_causal_mask(ids), nn.make_attention_mask(ids > 0, ids > 0))
        return nn.LayerNorm()(
            y + nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=False)(y, mask=mask)
        )


MODULES = {
    "convolutions": Convolutions(),
    "words": Words(),
    "lstm": nn.RNN(nn.OptimizedLSTMCell(5)),
    "gru, time first": nn.RNN(nn.GRUCell(5), unroll=2),
    "both ways": nn.Bidirectional(nn.RNN(nn.LSTMCell(3)), nn.RNN(nn.LSTMCell(3))),
    "remat": nn.remat(nn.Dense)(3),
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_modules_take_rows_apart(module):
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(module.init, rngs, X)
    apply = functools.partial(module.apply, rngs={"dropout": jax.random.key(2)})
    assert not mixes_rows(apply, variables, X, 6)


def test_what_has_another_length_has_no_rows():
    examples = {"y": X, "scale": jnp.ones(()), "codebook": jnp.ones((9, 4)), "step": 3}
    assert not mixes_rows(lambda _, e: (e["y"] * e["scale"]) @ e["codebook"].sum(0) * e["step"], None, examples, 6)
    assert mixes_rows(lambda _, e: e["y"].mean(0) * e["scale"] @ e["codebook"].T, None, examples, 6)


def test_what_cannot_be_looked_at_counts_as_mixing():
    assert mixes_rows(lambda _, x: x[0] if len(x) == 6 else x, None, X, 6)
