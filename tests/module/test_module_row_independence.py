"""Which modules, losses and metrics may be given padding: those whose rows do not depend on one another."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clu import metrics as clu
from some_cases import some

import elegy as eg
from elegy.losses import FunctionLoss
from elegy.metrics.function import as_metric
from elegy.module.row_independence import RowProbe
from elegy.strategies import resolve_strategy

rng = np.random.default_rng(0)
X = rng.normal(size=(16, 4, 4)).astype(np.float32)
Y = rng.integers(0, 4, 16)
W = rng.normal(size=(16, 4)).astype(np.float32)


def probed(module, phase="pred", loss=None, metrics=None, batch=None):
    batch = (X, Y) if batch is None else batch
    trainer = eg.Trainer(module, loss, metrics, optax.sgd(0.1))
    trainer.init_on_batch(batch)
    before = jax.tree.map(np.array, trainer.state.params)
    given = batch[0] if phase == "pred" else batch
    probe = RowProbe(trainer._session.buffer.struct, phase, given, resolve_strategy("jit"))
    answer = probe.rows_are_independent(trainer._session.buffer.placed)
    jax.tree.map(np.testing.assert_array_equal, trainer.state.params, before)
    return answer


def computing(function):
    """A module that computes `function(w, x)`."""
    return (lambda key, x: W), (lambda w, x: function(w, x))


def attention(w, x):
    scores = jnp.einsum("btd,bsd->bts", x @ w[:4], x)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), x).reshape(len(x), -1)


def over_time(w, x):
    return jax.lax.scan(lambda c, t: (c + t, c), jnp.zeros((len(x), 4)), x.swapaxes(0, 1))[1].swapaxes(0, 1)


def labels(x):
    return x[:, 0].astype(int)


def ctc(w, x):
    return optax.ctc_loss(x, jnp.zeros(x.shape[:2]), jnp.ones((len(x), 2), int), jnp.zeros((len(x), 2)))


APART = {
    "dense": lambda w, x: jax.nn.relu(x.reshape(-1, 4) @ w[:4]).reshape(x.shape),
    "layer norm": lambda w, x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True),
    "attention": attention,
    "over time": over_time,
    "vmap": lambda w, x: jax.vmap(lambda row: row.sum() + jnp.sort(row, 0).cumsum(0))(x),
    "dropout": lambda w, x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape),
    "keys of rows": lambda w, x: jax.vmap(jax.random.normal)(jax.random.split(jax.random.key(0), len(x))),
    "map": lambda w, x: jax.lax.map(lambda row: row.sum(), x),
    "convolution": lambda w, x: jax.lax.conv(x[..., None], jnp.ones((2, 4, 3, 1)), (1, 1), "SAME"),
    "labels": lambda w, x: jax.nn.log_softmax(x[:, 0])[jnp.arange(len(x)), labels(x)[:, 0]],
    "embedding": lambda w, x: w[labels(x)] + jnp.take(w, labels(x), axis=0, mode="clip"),
    "infinite": lambda w, x: jnp.where(x > 0, x, -jnp.inf),
    "remat": jax.checkpoint(lambda w, x: jnp.tanh(x @ w[:4])),
    "jit": jax.jit(lambda w, x: jnp.where(x > 0, x, jnp.linalg.norm(x, axis=-1, keepdims=True))),
    "write": lambda w, x: x.at[:, 0].set(0).at[:, :, 1].add(1.0),
    "pooling": lambda w, x: nn.max_pool(x, (2,), (2,)),
    "class token": lambda w, x: jnp.concatenate([jnp.tile(w[None, :1], (len(x), 1, 1)), x], axis=1),
    "while": lambda w, x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, x))[1],
    "as long as each row needs": jax.vmap(
        lambda w, r: jax.lax.while_loop(lambda v: v.max() < 9, lambda v: v + 1, r), (None, 0)
    ),
    "ctc": ctc,
    "fourier": lambda w, x: jnp.fft.rfft(x).real,
    "callback": lambda w, x: jax.pure_callback(lambda x: np.asarray(x) * 2, x, x),
    "16 bits": lambda w, x: x.astype(jnp.bfloat16) @ w[:4].astype(jnp.bfloat16),
    "integers": lambda w, x: jnp.argmax(x, -1),
    "complex": lambda w, x: jnp.fft.fft(x),
}


def test_functions_whose_rows_are_independent():
    module = computing(lambda w, x: {name: function(w, x) for name, function in APART.items()})
    assert probed(module)


def per_group(w, x):
    ids = (x[:, 0, 0] > 0).astype(int)
    return x[:, 0, 0] / jax.ops.segment_sum(jnp.ones(len(x)), ids, 2)[ids]


def hard(w, x):
    return jnp.where(x[:, 0, 0] >= jax.lax.top_k(x[:, 0, 0], 2)[0][-1], x[:, 0, 0], 0)


def by_valid(w, x):
    valid = jnp.isfinite(x)  # all of them, whatever the rows hold
    return x / valid.sum()


@jax.jit
def size(x):
    return x.shape[0]


TOGETHER = {
    "mean": lambda w, x: x - x.mean(0),
    "a little of the mean": lambda w, x: x - 1e-6 * x.mean(0),
    "maximum": lambda w, x: x / x.max(0),
    "maximum, rounded": lambda w, x: jnp.round(x / jnp.abs(x).max() * 7),
    "softmax": lambda w, x: jax.nn.softmax(x, axis=0),
    "contraction": lambda w, x: x[:, 0] @ (x[:, 0].T @ x[:, 0]),
    "differences": lambda w, x: (x[:, None, 0] - x[None, :, 0]).sum(-1),
    "sort": lambda w, x: jnp.sort(x, axis=0),
    "sum so far": lambda w, x: jnp.cumsum(x, axis=0),
    "backwards": lambda w, x: x[::-1],
    "carried": lambda w, x: jax.lax.scan(lambda c, row: (c + row, c), x[0], x)[1],
    "one size": lambda w, x: x.reshape(16, 16),
    "rolled": lambda w, x: x - jnp.roll(x, -1, axis=0),
    "by group": per_group,
    "hard examples": hard,
    "the first": lambda w, x: x - x[:1],
    "the last": lambda w, x: x - x[-1],
    "pooled": lambda w, x: nn.avg_pool(x[None], (3, 1), (1, 1), "SAME")[0],
    "picked": lambda w, x: x[labels(x)[:, 0]],
    "scattered": lambda w, x: jnp.zeros_like(x).at[labels(x)[:, 0]].add(x),
    "spectrum": lambda w, x: jnp.fft.fft(x, axis=0).real,
    "associative": lambda w, x: jax.lax.associative_scan(jnp.add, x),
    "callback": lambda w, x: jax.pure_callback(lambda x: np.asarray(x) - np.asarray(x).mean(0), x, x),
    "pmean": lambda w, x: jax.vmap(lambda row: row - jax.lax.pmean(row, "batch"), axis_name="batch")(x),
    "a branch": lambda w, x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
    "batch normalisation": lambda w, x: nn.BatchNorm(use_running_average=False).init_with_output(jax.random.key(0), x)[
        0
    ],
    "number of rows": lambda w, x: x / x.shape[0],
    "a little of the number of rows": lambda w, x: x * 100 + 1e-2 / x.shape[0],
    "number of rows within jit": lambda w, x: x / size(x),
    "number of rows as an exponent": lambda w, x: x ** x.shape[0],
    "a constant by rows": lambda w, x: x * np.full((len(x), 1, 1), 1 / len(x), np.float32),
    "steps by rows": lambda w, x: jax.lax.fori_loop(0, len(x), lambda i, y: y + 1, x),
    "sum of ones": lambda w, x: x / jnp.ones_like(x).sum(),
    "number of valid entries": by_valid,
    "no rows": lambda w, x: x.sum(0),
}


@pytest.mark.parametrize("function", some(TOGETHER.values(), 12), ids=TOGETHER)
def test_functions_whose_rows_depend_on_one_another(function):
    assert not probed(computing(function))


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_parameters_that_are_zero_or_constant_hide_nothing(start):
    def gated(params, x):
        return x.sum((1, 2)) + params["gate"] * ((x - x.mean(0)).reshape(len(x), -1) @ params["w"]).sum(-1)

    params = {"w": jnp.full((16, 4), start), "gate": jnp.zeros(())}
    assert not probed((lambda key, x: params, gated))


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        x = nn.relu(nn.Conv(8, (3, 3))(x[..., None]))
        x = nn.GroupNorm(2)(nn.ConvTranspose(4, (2, 2), (2, 2))(nn.max_pool(x, (2, 2), (2, 2))))
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not training)(x.reshape(len(x), -1)))


class Words(nn.Module):
    @nn.compact
    def __call__(self, x):
        ids = x[..., 0].astype(int)
        y = nn.Embed(10, 8)(ids) + self.param("at", nn.initializers.normal(), (1, 4, 8))
        mask = nn.combine_masks(nn.make_causal_mask(ids), nn.make_attention_mask(ids > 0, ids > 0))
        y = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=False)(y, mask=mask)
        return nn.Dense(4)(nn.LayerNorm()(y).mean(1))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        both = nn.Bidirectional(nn.RNN(nn.LSTMCell(3)), nn.RNN(nn.GRUCell(3)))(x)
        return nn.Dense(4)(nn.RNN(nn.OptimizedLSTMCell(5), unroll=2)(both)[:, -1])


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jax.lax.map(lambda row: row.sum(0), nn.remat(nn.Dense)(4)(x))


class Half(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for _ in range(4):
            x = x + nn.Dense(16, dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x))
        return nn.Dense(4)(x)


MODULES = [Convolutions(), Words(), Recurrent(), Mapped(), Half()]


@pytest.mark.parametrize("module", some(MODULES, 2), ids=lambda module: type(module).__name__)
def test_modules_that_keep_the_padding_in_training(module):
    losses = [eg.losses.CrossEntropy(), eg.regularizers.L2(0.1)]
    assert probed(module, "train", losses, [eg.metrics.Accuracy(), eg.losses.CrossEntropy()])


def squares(target, preds):
    return jnp.sum((preds - target[:, None]) ** 2, -1)


def contrastive(target, preds):
    return optax.softmax_cross_entropy_with_integer_labels(preds @ preds.T, jnp.arange(len(preds)))


class Unweighted(eg.metrics.Accuracy):
    def update(self, target, preds, **_):
        return super().update(target=target, preds=preds)


class Rows(eg.metrics.Mean):
    """Takes weights, and counts rows all the same."""

    def update(self, target, preds, sample_weight=None):
        return super().update(values=jnp.float32(preds.shape[0]))


class Centred(eg.losses.MeanSquaredError):
    """Looks at all rows, unlike the loss that it is made of."""

    def call(self, target, preds):
        return super().call(target[:, None], (preds - preds.mean(0))[:, :1])


def test_of_the_classes_of_this_package_alone_it_is_known_what_they_do_with_rows():
    known = [eg.losses.CrossEntropy(), eg.regularizers.L2(0.1), eg.metrics.Accuracy(), as_metric(eg.losses.Huber())]
    known += [part.index_into(preds="a").rename_arguments(target="inputs") for part in (known[0], known[2])]
    assert all(part.rows_are_independent for part in known)
    unknown = [Centred(), FunctionLoss(squares), as_metric(squares), as_metric(Centred()), Unweighted(), Rows()]
    unknown += [Centred().index_into(preds="a"), Rows().rename_arguments(preds="b"), as_metric(clu.Accuracy)]
    assert not any(part.rows_are_independent for part in unknown)


DENSE = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(4)])
LOSSES = {
    "each row": (squares, None, True),
    "each row, beside weights": (
        lambda target, preds, sample_weight: sample_weight * squares(target, preds),
        None,
        True,
    ),
    "mean": (lambda target, preds: squares(target, preds).mean(), None, False),
    "divided by rows": (lambda target, preds: squares(target, preds) / preds.shape[0], None, False),
    "less the mean": (lambda target, preds: squares(target, preds - preds.mean(0)), None, False),
    "rolled": (lambda target, preds: squares(jnp.roll(target, -1), preds), None, False),
    "against the last": (lambda target, preds: squares(target[-1:], preds), None, False),
    "so far": (lambda target, preds: jnp.cumsum(squares(target, preds)), None, False),
    "contrastive": (contrastive, None, False),
    "a loss made of one of this package": (Centred(), None, False),
    "a little by rows": (lambda target, preds: squares(target, preds) + 1e-3 / preds.shape[0], None, False),
    "columns, as many as rows": (
        lambda target, preds: ((preds - preds.mean()) @ jnp.ones((4, 11))).mean(0),
        None,
        False,
    ),
    "a metric without weights": (squares, Unweighted(), False),
    "a metric that counts rows": (squares, Rows(), False),
    "a function of hits": (squares, lambda target, preds: jnp.mean(preds.argmax(-1) == target + 1000), False),
    "a loss of each row as a metric": (squares, squares, True),
}


@pytest.mark.parametrize(("loss", "metrics", "expected"), LOSSES.values(), ids=LOSSES)
@pytest.mark.some(10)
def test_losses_and_metrics(loss, metrics, expected):
    assert probed(DENSE, "train", loss, metrics) is expected


def test_metrics_that_have_no_value_for_a_few_rows():
    module = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(1), jnp.ravel])
    assert probed(module, "test", None, [eg.metrics.AUC(), eg.metrics.Recall()], (X, np.zeros(16, int)))


def test_rows_without_weight_are_not_looked_at():
    weight = (Y < 2).astype(np.float32)
    x = np.where(weight[:, None, None] > 0, X, np.nan)
    assert probed(DENSE, "train", squares, batch=(x, Y, weight))
    assert not probed(DENSE, "train", contrastive, batch=(x, Y, weight))


class Sown(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params={"w": jnp.ones(())})

    def apply(self, key, inputs, training):
        return inputs * self.params["w"], self.add_loss("size", jnp.mean(inputs**2))


def printing(w, x):
    jax.debug.print("{}", x.sum())
    return x


def nan(w, x):
    return x * jnp.nan


REFUSED = {
    "a loss of its own": (Sown(), {"phase": "train"}),
    "batch statistics": (nn.BatchNorm(use_running_average=False), {"phase": "train"}),
    "rows that are all the same": (DENSE, {"batch": (np.ones_like(X), Y)}),
    "one row": (DENSE, {"batch": (X[:1], Y[:1])}),
    "it prints": (computing(printing), {}),
    "NaN": (computing(nan), {}),
}


@pytest.mark.parametrize(("module", "options"), REFUSED.values(), ids=REFUSED)
def test_where_nothing_can_be_seen_batches_keep_their_shape(module, options, capfd):
    assert not probed(module, **options)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "strategy", some(["data_parallel", "sharded", eg.strategies.FSDP({"data": 8}, min_size=4)], 1), ids=str
)
@pytest.mark.parametrize(("loss", "padded"), [(squares, True), (contrastive, False)], ids=["apart", "together"])
def test_batches_are_padded_on_a_mesh_where_rows_are_independent(strategy, loss, padded):
    trainer = eg.Trainer(DENSE, loss, optimizer=optax.sgd(0.1), strategy=strategy)
    trainer.init_on_batch(X[:5], Y[:5])
    batch, buffer = (X[:5], Y[:5]), trainer._session.buffer
    probe = trainer._session.executor.row_probe("train", buffer, batch)
    assert probe.rows_are_independent(buffer.placed) is padded
    assert buffer.readable()
