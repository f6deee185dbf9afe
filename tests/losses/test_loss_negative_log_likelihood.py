"""Negative log-likelihood under distributions of NumPyro, Distrax and TensorFlow Probability, against SciPy."""

import functools
import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import optax
import pytest
from scipy import stats

import elegy as eg


@functools.cache
def distrax():
    """Imported when a test runs, because it takes seconds, and every worker collects this file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorFlow Probability, which it imports, uses jax.core
        return importlib.import_module("distrax")


def tfd():
    distrax()
    return importlib.import_module("tensorflow_probability.substrates.jax.distributions")


RNG = np.random.default_rng(0)
B, D = 6, 3
LOC, SCALE = RNG.normal(size=(B, D)).astype("f4"), RNG.uniform(0.5, 2.0, size=(B, D)).astype("f4")
X = RNG.normal(size=(B, D)).astype("f4")
RATE, COUNTS = RNG.uniform(0.5, 4.0, size=B).astype("f4"), np.array([0, 3, 1, 2, 5, 1], "f4")
LOGITS, LABELS = RNG.normal(size=(B, 4)).astype("f4"), np.array([0, 3, 1, 2, 2, 0])
NORMAL = stats.norm.logpdf(X, LOC, SCALE)
LOSS = eg.losses.NegativeLogLikelihood()
CLOSE = {"rtol": 2e-5}

TABLE = {
    "numpyro batch": (lambda: nd.Normal(LOC[:, 0], SCALE[:, 0]), X[:, 0], NORMAL[:, 0]),
    "numpyro two batch axes": (lambda: nd.Normal(LOC, SCALE), X, NORMAL),
    "numpyro event": (lambda: nd.Normal(LOC, SCALE).to_event(1), X, NORMAL.sum(1)),
    "numpyro column target": (lambda: nd.Poisson(RATE), COUNTS[:, None], stats.poisson.logpmf(COUNTS, RATE)),
    "numpyro column batch": (lambda: nd.Poisson(RATE[:, None]), COUNTS, stats.poisson.logpmf(COUNTS, RATE)),
    "numpyro one for all": (lambda: nd.Normal(0.5, 2.0), X[:, 0], stats.norm.logpdf(X[:, 0], 0.5, 2.0)),
    "numpyro classes": (
        lambda: nd.Categorical(logits=LOGITS),
        LABELS,
        np.log(stats.multinomial.pmf(np.eye(4)[LABELS], 1, np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True))),
    ),
    "distrax event": (lambda: distrax().Independent(distrax().Normal(LOC, SCALE), 1), X, NORMAL.sum(1)),
    "distrax vector": (lambda: distrax().MultivariateNormalDiag(LOC, SCALE), X, NORMAL.sum(1)),
    "tfp batch": (lambda: tfd().Normal(LOC, SCALE), X, NORMAL),
    "tfp event": (lambda: tfd().MultivariateNormalDiag(LOC, SCALE), X, NORMAL.sum(1)),
}


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.some(6, also=["numpyro one for all"])
def test_values_weights_and_masks_equal_scipy(row):
    make, target, log_prob = TABLE[row]
    np.testing.assert_allclose(LOSS(target=target, preds=make()), -log_prob.mean(), **CLOSE)
    weight = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0])
    by_row = log_prob.reshape(B, -1).mean(1)
    missing = np.where(weight.reshape(-1, *[1] * (target.ndim - 1)) == 0, -1, target).astype(target.dtype)
    got = LOSS(target=missing, preds=make(), sample_weight=weight)
    np.testing.assert_allclose(got, -np.average(by_row, weights=weight), **CLOSE)
    np.testing.assert_allclose(LOSS(target=missing, preds=make(), mask=weight > 0), -by_row[weight > 0].mean(), **CLOSE)
    assert LOSS.maskable(B, target=target, preds=make()) is True
    total = eg.losses.NegativeLogLikelihood(reduction="sum")(target=target, preds=make())
    np.testing.assert_allclose(total, -log_prob.sum(), **CLOSE)


@pytest.mark.parametrize("weight", [[0.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_targets_of_weight_zero_outside_of_the_support_have_no_gradient(weight, bad):
    """The derivative of -log Gamma(x; a, b) with respect to the shared rate b is x - a / b."""
    target, concentration = np.array([bad, 1.5, 0.5]), jnp.array([jnp.nan, 2.0, 3.0])

    def mean(rate, concentration):
        return LOSS(target=target, preds=nd.Gamma(concentration, rate), sample_weight=jnp.array(weight))

    by_rate, by_concentration = jax.jit(jax.grad(mean, (0, 1)))(2.0, concentration)
    expected = 0.0 if not any(weight) else (2 * (1.5 - 2 / 2) + (0.5 - 3 / 2)) / 3
    np.testing.assert_allclose(by_rate, expected, rtol=1e-5, atol=1e-6)
    assert by_concentration[0] == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"shape \(6, 3\).*batch shape \(6,\) and event shape \(\).*to_event"):
        LOSS(target=X, preds=nd.Normal(LOC[:, 0], 1.0))
    with pytest.raises(ValueError, match=r"target has shape \(6,\).*event shape \(3,\)"):
        LOSS(target=X[:, 0], preds=nd.Normal(LOC, 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"target has shape \(5,\)"):
        LOSS(target=X[:5, 0], preds=distrax().Normal(LOC[:, 0], SCALE[:, 0]))
    with pytest.raises(TypeError, match=r"preds is float32\[6,3\], which has no method `log_prob`"):
        LOSS(target=X, preds=LOC)


NETWORK = (
    (lambda key, x: {"w": jnp.ones(D), "s": jnp.zeros(())}),
    (lambda params, x: nd.Normal(x @ params["w"], jnp.exp(params["s"]))),
)


@pytest.mark.parametrize("strategy", ["jit", "data_parallel", pytest.param("sharded", marks=pytest.mark.slow)])
def test_training_predictions_and_metrics_of_a_distribution(strategy):
    """Against a loop in JAX; 13 examples in batches of 8 are padded, and 8 devices get 2 rows or fewer each."""
    x = np.concatenate([LOC, SCALE, X])[:13]
    y, weight = x.sum(1) + 0.5, np.linspace(0.0, 2.0, 13).astype("f4")
    mean = eg.metrics.MeanSquaredError().index_into(preds="mean")
    trainer = eg.Trainer(NETWORK, LOSS, mean, optax.sgd(0.1), strategy=strategy)
    trainer.fit(x, y, sample_weight=weight, batch_size=8, epochs=2, shuffle=False, verbose=0)

    def loss(p, i):
        values = 0.5 * ((y[i] - x[i] @ p["w"]) / jnp.exp(p["s"])) ** 2 + p["s"] + 0.5 * np.log(2 * np.pi)
        return jnp.sum(weight[i] * values) / weight[i].sum()

    p = {"w": jnp.ones(D), "s": jnp.zeros(())}
    for i in 2 * [slice(0, 8), slice(8, 13)]:
        p = jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(loss)(p, i))
    for name in p:
        np.testing.assert_allclose(trainer.state.params[name], p[name], rtol=1e-5)
    values = trainer.evaluate(x, y, sample_weight=weight, batch_size=8, verbose=0)
    np.testing.assert_allclose(values["negative_log_likelihood"], loss(p, slice(None)), rtol=1e-5)
    error = np.average((x @ p["w"] - y) ** 2, weights=weight)
    np.testing.assert_allclose(values["mean_square_error"], error, rtol=1e-5)
    found = trainer.predict(x, batch_size=8)
    assert (found.batch_shape, found.event_shape) == ((13,), ())
    np.testing.assert_allclose(found.log_prob(y), stats.norm.logpdf(y, x @ p["w"], np.exp(p["s"])), rtol=1e-5)


JOINED = {
    "numpyro classes": lambda m: nd.Categorical(logits=m),
    "numpyro event": lambda m: nd.Normal(m, 1.0).to_event(1),
    "numpyro mixture": lambda m: nd.MixtureSameFamily(nd.Categorical(logits=m), nd.Normal(m, 2.0)),
    "distrax event": lambda m: distrax().Independent(distrax().Normal(m, jnp.ones(D)), 1),
    "distrax mixture": lambda m: distrax().MixtureSameFamily(
        distrax().Categorical(logits=m), distrax().Normal(m, jnp.ones(D))
    ),
    "tfp event": lambda m: tfd().MultivariateNormalDiag(m, jnp.ones(D)),
}


@pytest.mark.parametrize("row", JOINED)
def test_predict_joins_and_summary_describes(row):
    """Joined over batches of 4 and 2 as made from all rows at once; `D` also is the number of rows of a tail."""
    module = (lambda key, x: {"w": jnp.eye(D)}), (lambda params, x: JOINED[row](x @ params["w"]))
    trainer, expected = eg.Trainer(module), JOINED[row](X)
    trainer.init_on_batch(X)
    found = trainer.predict(X, batch_size=4)
    event = tuple(expected.event_shape)
    assert (tuple(found.batch_shape), tuple(found.event_shape)) == ((B,), event)
    target = np.zeros((B, *event), "i4" if row.endswith("classes") else "f4")
    np.testing.assert_allclose(found.log_prob(target), expected.log_prob(target), rtol=1e-6)
    assert type(found) is type(expected)
    assert f"(batch=[6], event={list(event)})" in trainer.summary(X, return_repr=True)


def test_parts_of_outputs_are_attributes_or_results_of_methods():
    mse = eg.losses.MeanSquaredError()
    for preds in (nd.Normal(LOC, SCALE), distrax().Normal(LOC, SCALE), {"mean": LOC}):
        value = mse.index_into(preds="mean")(target=X, preds=preds)
        np.testing.assert_allclose(value, np.square(X - LOC).mean(), rtol=1e-6)
    inner = mse.index_into(preds=("base_dist", "loc"))(target=X, preds=nd.Normal(LOC, 1.0).to_event(1))
    np.testing.assert_allclose(inner, np.square(X - LOC).mean(), rtol=1e-6)
    with pytest.raises(KeyError, match="'preds' has nothing at 'median_'"):
        mse.index_into(preds="median_")(target=X, preds=nd.Normal(LOC, SCALE))
    with pytest.raises(KeyError, match=r"'preds' has nothing at 'mean': it is float32\[6,3\]"):
        mse.index_into(preds="mean")(target=X, preds=LOC)


def test_labels_of_all_data_beside_outputs_that_know_their_number_of_rows():
    def init(key, x):
        return {"w": jnp.zeros(())}

    def apply(params, x):
        return nd.Normal(x[:, 0] + params["w"], jnp.ones(len(x)))

    metric = eg.metrics.MeanAbsoluteError().index_into(preds="mean")
    trainer = eg.Trainer((init, apply), loss=LOSS, metrics=metric, optimizer=optax.sgd(0.0))
    history = trainer.fit(X, X[:, 0] + 2, batch_size=4, verbose=0).history  # B examples, more than a batch
    np.testing.assert_allclose(history["mean_absolute_error"], [2.0], rtol=1e-6)
    np.testing.assert_allclose(history["loss"], [-stats.norm.logpdf(2.0)], rtol=1e-6)
