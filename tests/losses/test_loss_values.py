"""Values against NumPy and scikit-learn in float64; gradients against finite differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
from jax.test_util import check_grads

import elegy as eg
from elegy import losses

RNG = np.random.default_rng(0)
TARGET, PREDS = RNG.uniform(0.1, 2.0, size=(2, 7, 3)).astype("f4")
T64, P64 = TARGET.astype("f8"), PREDS.astype("f8")


def np_huber(t, p, delta):
    error = np.abs(p - t)
    return np.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta)).mean(-1)


def np_cosine(t, p):
    return -(t * p).sum(-1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(p, axis=-1)


CASES = {
    "mse": (losses.MeanSquaredError, losses.mean_squared_error, {}, ((T64 - P64) ** 2).mean(-1)),
    "mae": (losses.MeanAbsoluteError, losses.mean_absolute_error, {}, np.abs(T64 - P64).mean(-1)),
    "mape": (
        losses.MeanAbsolutePercentageError,
        losses.mean_absolute_percentage_error,
        {},
        100 * (np.abs(T64 - P64) / np.abs(T64)).mean(-1),
    ),
    "msle": (
        losses.MeanSquaredLogarithmicError,
        losses.mean_squared_logarithmic_error,
        {},
        ((np.log1p(T64) - np.log1p(P64)) ** 2).mean(-1),
    ),
    "huber": (losses.Huber, losses.huber, {"delta": 0.4}, np_huber(T64, P64, 0.4)),
    "cosine": (losses.CosineSimilarity, losses.cosine_similarity, {"axis": -1}, np_cosine(T64, P64)),
}


@pytest.mark.parametrize("case", CASES)
def test_regression_values(case):
    cls, function, options, expected = CASES[case]
    np.testing.assert_allclose(function(TARGET, PREDS, **options), expected, rtol=1e-5)
    np.testing.assert_allclose(cls(**options)(target=TARGET, preds=PREDS), expected.mean(), rtol=1e-5)
    weight = np.arange(7, dtype="f4")
    got = cls(**options)(target=TARGET, preds=PREDS, sample_weight=weight)
    np.testing.assert_allclose(got, np.average(expected, weights=weight), rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    cls, _, options, _ = CASES[case]
    check_grads(
        lambda p: cls(**options)(target=TARGET, preds=p), (jnp.asarray(PREDS),), order=1, modes="rev", rtol=0.02
    )


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_computed_in_float32(case):
    cls, _, options, _ = CASES[case]
    preds, target = jnp.asarray(PREDS, jnp.bfloat16), jnp.asarray(TARGET, jnp.bfloat16)
    got = cls(**options)(target=target, preds=preds)
    expected = cls(**options)(target=target.astype("f4"), preds=preds.astype("f4"))
    np.testing.assert_array_equal(got, expected)


SKLEARN = {
    "mse": sklearn.metrics.mean_squared_error,
    "mae": sklearn.metrics.mean_absolute_error,
    "mape": lambda *a, **k: 100 * sklearn.metrics.mean_absolute_percentage_error(*a, **k),
    "msle": sklearn.metrics.mean_squared_log_error,
}


@pytest.mark.parametrize("case", SKLEARN)
def test_against_scikit_learn(case):
    weight = RNG.uniform(size=7)
    expected = SKLEARN[case](T64, P64, sample_weight=weight)
    got = CASES[case][0]()(target=TARGET, preds=PREDS, sample_weight=weight.astype("f4"))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("case", ["mse", "mae", "mape", "msle", "huber"])
def test_one_axis_keeps_the_examples(case):
    cls, function, options, _ = CASES[case]
    expected = [function(TARGET[i : i + 1, :1], PREDS[i : i + 1, :1], **options)[0] for i in range(7)]
    np.testing.assert_allclose(function(TARGET[:, 0], PREDS[:, 0], **options), expected, rtol=1e-6)
    # (B,) against (B, 1) must not become (B, B).
    np.testing.assert_allclose(function(TARGET[:, 0], PREDS[:, :1], **options), expected, rtol=1e-6)
    assert cls(**options).maskable(7, target=TARGET[:, 0], preds=PREDS[:, 0])


@pytest.mark.parametrize("case", CASES)
def test_shapes_that_differ(case):
    cls, _, options, _ = CASES[case]
    with pytest.raises(ValueError, match=r"target has shape \(7, 3\) and preds \(7, 2\)"):
        cls(**options)(target=TARGET, preds=PREDS[:, :2])


def test_cosine_of_zero_vectors():
    value, grad = jax.value_and_grad(lambda p: losses.CosineSimilarity()(target=jnp.ones((1, 3)), preds=p))(
        jnp.zeros((1, 3))
    )
    assert value == 0.0
    assert np.isfinite(grad).all()


def test_names_and_aliases():
    assert losses.Crossentropy is losses.CrossEntropy
    assert losses.crossentropy is losses.cross_entropy
    assert losses.CrossEntropy().name == "cross_entropy"
    assert losses.MeanAbsolutePercentageError().name == "mean_absolute_percentage_error"
    assert all(hasattr(losses, name) for name in losses.__all__)


Z_TARGET, Z_PREDS = (RNG.normal(size=(7, 3)) + 1j * RNG.normal(size=(7, 3)) for _ in range(2))
Z_DISTANCE = np.abs(Z_PREDS - Z_TARGET)
COMPLEX = {
    "mse": (losses.MeanSquaredError(), (Z_DISTANCE**2).mean()),
    "mae": (losses.MeanAbsoluteError(), Z_DISTANCE.mean()),
    "mape": (losses.MeanAbsolutePercentageError(), 100 * (Z_DISTANCE / np.abs(Z_TARGET)).mean()),
    "huber": (losses.Huber(0.4), np_huber(0, Z_DISTANCE, 0.4).mean()),
}


@pytest.mark.parametrize("case", COMPLEX)
def test_distances_of_complex_numbers(case):
    loss, expected = COMPLEX[case]
    target, preds = Z_TARGET.astype("c8"), Z_PREDS.astype("c8")
    value = loss(target=target, preds=preds)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # Real predictions of a complex target: the imaginary part of the target counts.
    real = loss(target=target, preds=preds.real)
    np.testing.assert_allclose(real, loss(target=target, preds=preds.real.astype("c8")), rtol=1e-6)
    # The gradient by the real and the imaginary part, against the same loss of two real arrays.
    grads = jax.grad(lambda re, im: loss(target=target, preds=re + 1j * im), argnums=(0, 1))(preds.real, preds.imag)
    step = 1e-3
    moved = loss(target=target, preds=preds - step * (grads[0] + 1j * grads[1]))
    np.testing.assert_allclose(value - moved, step * sum(jnp.sum(g**2) for g in grads), rtol=0.1)


@pytest.mark.parametrize("loss", [losses.CosineSimilarity(), losses.CrossEntropy(), losses.CrossEntropy(binary=True)])
def test_complex_numbers_are_refused_where_they_mean_nothing(loss):
    with pytest.raises(TypeError, match="is defined for real numbers, but preds is complex64"):
        loss(target=jnp.zeros((2, 3)), preds=jnp.zeros((2, 3), jnp.complex64))
    with pytest.raises(TypeError, match="but values is complex64"):
        losses.FunctionLoss(lambda target, preds: preds - target)(target=jnp.zeros(2), preds=jnp.zeros(2) * 1j)


def test_distributions_and_other_objects_are_named():
    with pytest.raises(TypeError, match=r"preds is a Normal, not an array.*NegativeLogLikelihood.*index_into"):
        losses.MeanSquaredError()(target=jnp.zeros(2), preds=type("Normal", (), {"shape": lambda self: ()})())


def wrong(target, preds):
    return preds.argmax(-1) != target


def errors(target, preds):
    return (preds.argmax(-1) != target).sum()


@pytest.mark.parametrize(("loss", "returned"), [(wrong, r"bool\[4\]"), (errors, r"int32\[\]")])
def test_a_loss_without_a_gradient_is_refused_before_the_first_step(loss, returned):
    x, y = np.eye(4, dtype="f4"), np.arange(4)
    trainer = eg.Trainer(nn.Dense(4), loss=loss, optimizer=optax.sgd(0.1))
    with pytest.raises(TypeError, match=rf"{loss.__name__!r} returned {returned}, and only floating numbers"):
        trainer.fit(x, y, batch_size=4, verbose=0)
    assert trainer.step == 0
    assert trainer.state.params is None
    metric = eg.Trainer(nn.Dense(4), loss=losses.CrossEntropy(), metrics=wrong, optimizer=optax.sgd(0.1))
    logs = metric.train_on_batch(x, y)  # a metric needs none
    assert float(logs["wrong"]) in (0.0, 0.25, 0.5, 0.75, 1.0)
