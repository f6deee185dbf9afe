"""JAX finds nothing to refuse in steps, losses and metrics under its strict promotion of dtypes and of ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg

RNG = np.random.default_rng(0)
X = RNG.normal(size=(14, 3)).astype(np.float32)
Y = X.argmax(1).astype(np.int32)
WEIGHT = RNG.uniform(0.5, 2.0, 14).astype(np.float32)
STRICT = [
    pytest.param(lambda: jax.numpy_dtype_promotion("strict"), id="dtypes"),
    pytest.param(lambda: jax.numpy_rank_promotion("raise"), id="ranks"),
]


@pytest.mark.parametrize("strict", STRICT)
def test_training(strict):
    network = (lambda key, x: jnp.eye(3), lambda params, x: x @ params)
    metrics = [eg.metrics.Accuracy(), eg.metrics.F1(average="macro", num_classes=3)]
    trainer = eg.Trainer(network, eg.losses.CrossEntropy(), metrics, optax.sgd(0.1), averaging=eg.SWA(), accumulate=2)
    with strict():
        trainer.fit(X, Y, sample_weight=WEIGHT, batch_size=8, epochs=2, shuffle=False, verbose=0)
        accuracy = trainer.evaluate(X, Y, sample_weight=WEIGHT, batch_size=8, verbose=0)["accuracy"]
    params, path = np.eye(3), []
    for rows in [slice(0, 8), slice(8, 14)] * 2:
        odds = np.exp(X[rows] @ params)
        error = WEIGHT[rows, None] * (odds / odds.sum(1, keepdims=True) - np.eye(3)[Y[rows]])
        params = params - 0.1 * X[rows].T @ error / WEIGHT[rows].sum()
        path.append(params)
    np.testing.assert_allclose(trainer.state.params, params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(trainer.predict(X, weights="averaged"), X @ np.mean(path, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(accuracy, np.average((X @ params).argmax(1) == Y, weights=WEIGHT), rtol=1e-6)


@pytest.mark.parametrize("strict", STRICT)
@pytest.mark.parametrize(
    ("metric", "target", "preds", "expected"),
    [
        (eg.metrics.Accuracy(mode="multilabel", subset_accuracy=True), [[1, 0], [1, 1]], [[0.9, 0.1], [0.9, 0.1]], 0.5),
        (eg.metrics.Precision(), [1, 0, 1], [0.9, 0.8, 0.1], 0.5),
        (eg.metrics.R2(), [1.0, 2.0, 3.0], [1.0, 2.0, 2.0], 0.5),
        (eg.losses.CategoricalHinge(), [0], [[1.0, 0.5, 2.0]], 2.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, (eg.metrics.Metric, eg.losses.Loss)) else "",
)
@pytest.mark.some(4)
def test_losses_and_metrics(strict, metric, target, preds, expected):
    rows = len(target)
    with strict():
        arguments = {"target": np.asarray(target), "preds": np.asarray(preds), "mask": np.ones(rows, bool)}
        loss = isinstance(metric, eg.losses.Loss)
        value = metric(**arguments) if loss else metric.update(**arguments).compute()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


TOKENS = np.array([[5, 6, 7, 8]])


@pytest.mark.parametrize(
    ("metric", "preds", "expected"),
    [
        (eg.metrics.EditDistance(), TOKENS[:, ::-1], 4.0),
        (eg.metrics.RougeL(), TOKENS[:, [0, 2, 3, 1]], 0.75),
        (eg.metrics.BLEU(max_order=1), TOKENS, 1.0),
    ],
    ids=["EditDistance", "RougeL", "BLEU"],
)
@pytest.mark.parametrize("strict", STRICT)
def test_metrics_of_sequences(strict, metric, preds, expected):
    with strict():
        value = metric.update(target=TOKENS, preds=preds, mask=np.ones(1, bool)).compute()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


CLASSES = {"target": np.array([0, 0, 1, 1, 2, 2]), "preds": np.array([0, 1, 1, 1, 2, 0])}
NUMBERS = {"target": RNG.uniform(size=6).astype(np.float32), "preds": RNG.uniform(size=6).astype(np.float32)}
ROWS = {"target": RNG.normal(size=(6, 3)).astype(np.float32), "preds": RNG.normal(size=(6, 3)).astype(np.float32)}
FRAMES = RNG.normal(size=(2, 5, 4)).astype(np.float32), np.array([5, 3])


@pytest.mark.parametrize(
    ("made", "given"),
    [
        (eg.metrics.MatthewsCorrelation(3), CLASSES),
        (eg.metrics.CohenKappa(3, weights="linear"), CLASSES),
        (eg.metrics.SpearmanCorrelation(), NUMBERS),
        (eg.metrics.FrechetDistance(3), ROWS),
        (eg.losses.FocalCrossEntropy(alpha=(0.2, 0.3, 0.5)), {"target": CLASSES["target"], "preds": ROWS["preds"]}),
        (eg.losses.Quantile((0.1, 0.5, 0.9)), {"target": NUMBERS["target"], "preds": ROWS["preds"]}),
        (eg.losses.InfoNCE(), {"preds": (ROWS["target"], ROWS["preds"])}),
        (eg.losses.CTC(), {"target": np.array([[1, 2, 0], [3, 0, 0]]), "preds": FRAMES}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else type(value).__name__,
)
def test_strict_ranks_change_no_value(made, given):
    def value():
        return made(**given) if isinstance(made, eg.losses.Loss) else made.update(**given).compute()

    expected = value()
    with jax.numpy_rank_promotion("raise"):
        np.testing.assert_array_equal(value(), expected)


@pytest.mark.parametrize("strict", STRICT)
def test_sequences_with_masks(strict):
    """The cross-entropy of (B, T) classes with weights (B, T), in buckets of two lengths, against NumPy."""
    batches = []
    for length in (2, 4):
        inputs = RNG.normal(size=(3, length, 3)).astype(np.float32)
        batches.append((inputs, inputs.argmax(-1), (RNG.uniform(size=(3, length)) < 0.7).astype(np.float32)))
    network = (lambda key, x: jnp.eye(3), lambda params, x: jnp.matmul(x, params))
    losses, metrics = [eg.losses.CrossEntropy()], [eg.metrics.Accuracy(), eg.metrics.Perplexity()]
    trainer = eg.Trainer(network, losses, metrics, optax.sgd(0.0))
    with strict():
        history = trainer.fit(batches, verbose=0).history
    terms = [np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, y[..., None], -1)[..., 0] for x, y, _ in batches]
    loss = sum((w * t).sum() for t, (_, _, w) in zip(terms, batches, strict=True)) / sum(b[2].sum() for b in batches)
    np.testing.assert_allclose(history["loss"], [loss], rtol=1e-5)
    np.testing.assert_allclose(history["perplexity"], [np.exp(loss)], rtol=1e-5)
