"""What a weight of 0 keeps out of the gradients, at the weight's own resolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.losses import CrossEntropy, Loss, MeanSquaredError, Reduction

B, T, F = 8, 5, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, F)).astype("f4")
Y = RNG.normal(size=(B, T, 1)).astype("f4")
KERNEL = RNG.normal(size=(F, 1)).astype("f4")
WEIGHT = RNG.uniform(0.5, 2.0, size=(B, T)).astype("f4") * (RNG.uniform(size=(B, T)) > 0.3)
MASK = np.arange(B) < B - 2


def holes(array, counts, bad=np.nan):
    """The array, with what does not count replaced."""
    return np.where(counts.reshape(counts.shape + (1,) * (array.ndim - counts.ndim)), array, bad).astype("f4")


@pytest.mark.parametrize(("key", "bad"), [("target", np.nan), ("target", np.inf), ("preds", np.nan)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(B, T), (B, T, 1), (1, T)])
@pytest.mark.parametrize("reduction", [Reduction.MEAN, Reduction.SUM, Reduction.NONE])
def test_steps_of_weight_zero_leak_nothing(reduction, shape, masked, key, bad):
    given = WEIGHT[:1] if shape == (1, T) else WEIGHT
    assert (given == 0).any()
    weight = np.broadcast_to(given, (B, T)).astype("f8") * (MASK[:, None] if masked else 1.0)
    target = holes(Y, weight != 0, bad) if key == "target" else Y
    shift = holes(np.zeros_like(Y), weight != 0, bad) if key == "preds" else 0.0
    kwargs = {"sample_weight": jnp.asarray(given.reshape(shape)), **({"mask": jnp.asarray(MASK)} if masked else {})}

    def loss(kernel):
        return MeanSquaredError(reduction=reduction)(
            target=jnp.asarray(target), preds=X @ kernel + shift, **kwargs
        ).sum()

    value, grad = jax.value_and_grad(loss)(jnp.asarray(KERNEL))
    error = X.astype("f8") @ KERNEL - Y
    by = weight.sum() if reduction is Reduction.MEAN else 1.0
    np.testing.assert_allclose(value, (weight * error[..., 0] ** 2).sum() / by, rtol=1e-5)
    expected = np.einsum("btf,bt->f", X, 2 * weight * error[..., 0])[:, None] / by
    np.testing.assert_allclose(grad, expected, rtol=1e-4)


def test_training_with_steps_that_have_no_target():
    def train(target):
        model = eg.Trainer(nn.Dense(1), MeanSquaredError(), optimizer=optax.sgd(0.1), seed=0)
        model.fit(X, target, sample_weight=WEIGHT, epochs=3, batch_size=4, shuffle=False, verbose=0)
        return model.predict(X)

    np.testing.assert_allclose(train(holes(Y, WEIGHT != 0)), train(holes(Y, WEIGHT != 0, 0.0)), rtol=1e-6)


def test_arrays_that_the_weight_does_not_fit_are_guarded_by_row():
    class Pooled(Loss):
        def call(self, target, preds):
            return jnp.square(preds["steps"] - target[:, None]) + jnp.square(preds["extra"].sum(-1))[:, None]

    weight = WEIGHT.copy()
    weight[2] = 0.0
    rows = weight.any(1)
    y, extra = RNG.normal(size=B), RNG.normal(size=(B, T + 1))
    steps = RNG.normal(size=(B, T))

    def loss(steps, extra):
        preds = {"steps": steps, "extra": extra}
        return Pooled()(target=jnp.asarray(holes(y, rows)), preds=preds, sample_weight=jnp.asarray(weight))

    got = jax.grad(loss, (0, 1))(jnp.asarray(holes(steps, weight != 0)), jnp.asarray(holes(extra, rows)))
    w = weight / weight.sum()
    np.testing.assert_allclose(got[0], 2 * w * (steps - y[:, None]), rtol=1e-4, atol=1e-7)
    expected = np.repeat((2 * w.sum(1) * extra.sum(1))[:, None], T + 1, axis=1)
    np.testing.assert_allclose(got[1], expected, rtol=1e-4, atol=1e-6)


def test_what_counts_stays_visible():
    target, counts = Y.copy(), WEIGHT != 0
    target[tuple(np.argwhere(counts)[0])] = np.nan
    assert np.isnan(MeanSquaredError()(target=target, preds=jnp.zeros_like(Y), sample_weight=WEIGHT))
    logits = RNG.normal(size=(B, T, 4)).astype("f4")
    logits[..., 3] = -np.inf  # a class that is ruled out stays ruled out
    labels = RNG.integers(0, 3, size=(B, T))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(WEIGHT * np.take_along_axis(log_p, labels[..., None], -1)[..., 0]).sum() / WEIGHT.sum()
    got = CrossEntropy()(target=labels, preds=jnp.asarray(logits), sample_weight=WEIGHT)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
