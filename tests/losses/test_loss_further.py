"""Losses of counts, distributions, margins, sequences and embeddings against formulas in NumPy float64."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
from scipy.special import expit, log_softmax, logsumexp, softmax

import elegy as eg
from elegy import losses
from elegy.metrics.function import LossMetric

RNG = np.random.default_rng(0)
N, C = 7, 4
REAL, LOGITS = RNG.normal(size=(N, 3)), RNG.normal(size=(N, C))
LABELS, SIGNS = RNG.integers(0, C, size=N), RNG.integers(0, 2, size=(N, 3))
COUNTS, RATES = RNG.poisson(2.0, size=(N, 3)), RNG.uniform(0.5, 3.0, size=(N, 3))
DISTRIBUTIONS = RNG.dirichlet(np.ones(C), size=N)
DISTRIBUTIONS[0] = [0, 0, 1, 0]
QUANTILES = RNG.normal(size=(N, 2))
FIRST, SECOND, THIRD = RNG.normal(size=(3, N, 5))
ALIKE = RNG.integers(0, 2, size=N)
FRAMES, LENGTHS = RNG.normal(size=(N, 4, 3)), np.array([4, 4, 3, 2, 4, 1, 4])
SPOKEN = np.array([[1, 2, 0], [1, 1, 0], [2, 0, 0], [1, 0, 0], [0, 2, 0], [-1, -1, -1], [1, 2, 1]])
WEIGHT = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 3.0, 1.0])


def of_target(values):
    return values[np.arange(N), LABELS]


def np_hinge(signs, scores):
    return np.maximum(0, 1 - (2 * signs - 1) * scores)


def np_categorical_hinge(scores):
    others = np.where(np.eye(C, dtype=bool)[LABELS], -np.inf, scores).max(-1)
    return np.maximum(0, 1 + others - of_target(scores))


def np_binary_focal(signs, logits, gamma, alpha):
    p = np.where(signs == 1, expit(logits), expit(-logits))
    return (-np.where(signs == 1, alpha, 1 - alpha) * (1 - p) ** gamma * np.log(p)).mean(-1)


def np_ctc(labels, logits, frames):
    """The sum over all paths of classes that collapse to the labels."""
    log_p, wanted = log_softmax(logits[:frames], -1), [label for label in labels if label > 0]
    paths = itertools.product(range(3), repeat=frames)
    right = [p for p in paths if [k for k, _ in itertools.groupby(p) if k] == wanted]
    return -logsumexp([log_p[np.arange(frames), path].sum() for path in right])


def np_pinball(target, preds, q):
    return np.where(target >= preds, q * (target - preds), (1 - q) * (preds - target))


def np_info_nce(queries, keys, temperature, counts):
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, keys))
    similarity = a @ b.T / temperature
    allowed = counts[None, :] | np.eye(N, dtype=bool)
    return logsumexp(np.where(allowed, similarity, -np.inf), -1) - np.diag(similarity)


def np_nce_both(counts):
    return (np_info_nce(FIRST, SECOND, 0.5, counts) + np_info_nce(SECOND, FIRST, 0.5, counts)) / 2


LOG_P, EVERYONE = log_softmax(LOGITS, -1), np.ones(N, bool)
FOCAL = -of_target(LOG_P) * (1 - np.exp(of_target(LOG_P))) ** 2
CLASS_FACTORS = np.array([0.1, 0.2, 0.3, 0.4])
SMOOTH = 0.8 * np.eye(C)[LABELS] + 0.2 / C
DISTANCE = np.linalg.norm(FIRST - SECOND, axis=-1)
FAR = np.linalg.norm(FIRST - THIRD, axis=-1)

CASES = {
    "log_cosh": (losses.LogCosh(), REAL, RATES, np.log(np.cosh(RATES - REAL)).mean(-1)),
    "poisson": (losses.Poisson(), COUNTS, RATES, (RATES - COUNTS * np.log(RATES)).mean(-1)),
    "poisson_log": (losses.Poisson(log_input=True), COUNTS, REAL, (np.exp(REAL) - COUNTS * REAL).mean(-1)),
    "kl": (
        losses.KLDivergence(),
        DISTRIBUTIONS,
        LOGITS,
        (np.where(DISTRIBUTIONS > 0, DISTRIBUTIONS * (np.log(DISTRIBUTIONS + 1e-300) - LOG_P), 0)).sum(-1),
    ),
    "hinge": (losses.Hinge(), SIGNS, REAL, np_hinge(SIGNS, REAL).mean(-1)),
    "hinge_signs": (losses.Hinge(), 2 * SIGNS - 1, REAL, np_hinge(SIGNS, REAL).mean(-1)),
    "squared_hinge": (losses.SquaredHinge(), SIGNS, REAL, (np_hinge(SIGNS, REAL) ** 2).mean(-1)),
    "categorical_hinge": (losses.CategoricalHinge(), LABELS, LOGITS, np_categorical_hinge(LOGITS)),
    "focal": (losses.FocalCrossEntropy(), LABELS, LOGITS, FOCAL),
    "focal_probabilities": (losses.FocalCrossEntropy(from_logits=False), LABELS, softmax(LOGITS, -1), FOCAL),
    "focal_alpha": (
        losses.FocalCrossEntropy(gamma=2.0, alpha=(0.1, 0.2, 0.3, 0.4)),
        LABELS,
        LOGITS,
        CLASS_FACTORS[LABELS] * FOCAL,
    ),
    "focal_smooth": (
        losses.FocalCrossEntropy(gamma=1.5, label_smoothing=0.2),
        LABELS,
        LOGITS,
        (-SMOOTH * (1 - np.exp(LOG_P)) ** 1.5 * LOG_P).sum(-1),
    ),
    "focal_binary": (
        losses.FocalCrossEntropy(gamma=1.5, alpha=0.25, binary=True),
        SIGNS,
        REAL,
        np_binary_focal(SIGNS, REAL, 1.5, 0.25),
    ),
    "ctc": (losses.CTC(), SPOKEN, FRAMES, np.array([np_ctc(s, f, 4) for s, f in zip(SPOKEN, FRAMES, strict=True)])),
    "ctc_lengths": (
        losses.CTC(),
        np.where(np.arange(3) < 1, SPOKEN, 0),  # at most one label, which fits into every length
        (FRAMES, LENGTHS),
        np.array([np_ctc(s[:1], f, t) for s, f, t in zip(SPOKEN, FRAMES, LENGTHS, strict=True)]),
    ),
    "quantile": (losses.Quantile(0.9), REAL, RATES, np_pinball(REAL, RATES, 0.9).mean(-1)),
    "quantiles": (
        losses.Quantile((0.1, 0.9)),
        REAL[:, 0],
        QUANTILES,
        np_pinball(REAL[:, :1], QUANTILES, np.array([0.1, 0.9])).mean(-1),
    ),
    "triplet": (losses.Triplet(0.7), None, (FIRST, SECOND, THIRD), np.maximum(0, DISTANCE - FAR + 0.7)),
    "contrastive": (
        losses.Contrastive(4.0),
        ALIKE,
        (FIRST, SECOND),
        np.where(ALIKE == 1, DISTANCE**2, np.maximum(0, 4 - DISTANCE) ** 2),
    ),
    "info_nce": (losses.InfoNCE(0.2), None, (FIRST, SECOND), np_info_nce(FIRST, SECOND, 0.2, EVERYONE)),
    "info_nce_symmetric": (losses.InfoNCE(0.5, symmetric=True), None, (FIRST, SECOND), np_nce_both(EVERYONE)),
}
ALONE = [case for case in CASES if not case.startswith("info_nce")]


def narrow(tree):
    return jax.tree.map(lambda x: x.astype("f4") if x.dtype == "f8" else x.astype("i4"), tree)


def rows_of(tree, rows):
    return jax.tree.map(lambda x: x[rows], narrow(tree))


def values_among(case, counts):
    """The values where rows of weight 0 are not negatives of others."""
    if not case.startswith("info_nce"):
        return CASES[case][3]
    return np_info_nce(FIRST, SECOND, 0.2, counts) if case == "info_nce" else np_nce_both(counts)


@pytest.mark.parametrize("case", CASES)
def test_values_and_reductions(case):
    loss, target, preds, expected = CASES[case]

    @jax.jit
    def reduced(given, weight):
        by = {kind: loss.replace(reduction=kind) for kind in losses.Reduction}
        return by[losses.Reduction.NONE](**given), [one(**given, sample_weight=weight) for one in by.values()]

    values, got = reduced({"target": narrow(target), "preds": narrow(preds)}, WEIGHT.astype("f4"))
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-6)
    weighted = WEIGHT * values_among(case, WEIGHT > 0)
    for kind, value in {
        losses.Reduction.NONE: weighted,
        losses.Reduction.SUM: weighted.sum(),
        losses.Reduction.MEAN: weighted.sum() / WEIGHT.sum(),
        losses.Reduction.SUM_OVER_BATCH_SIZE: weighted.sum() / N,
    }.items():
        np.testing.assert_allclose(got[list(losses.Reduction).index(kind)], value, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.some(8)
def test_gradients_ignore_rows_of_weight_zero(case):
    loss, target, preds, _ = CASES[case]
    preds, fixed = (preds[0], preds[1]) if case == "ctc_lengths" else (preds, None)
    keep = WEIGHT > 0

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(preds):
        given = preds if fixed is None else (preds, jnp.asarray(fixed))
        return loss(target=narrow(target), preds=given, mask=jnp.asarray(keep))

    def moved(step):
        return jax.tree.map(lambda x, d: (x + step * d).astype("f4"), preds, direction)

    shapes = jax.tree.map(np.shape, preds, is_leaf=lambda x: isinstance(x, np.ndarray))
    direction = jax.tree.map(lambda s: RNG.normal(size=s), shapes, is_leaf=lambda s: isinstance(s[0], int))
    spoilt = jax.tree.map(lambda x: np.where(keep.reshape(N, *(1,) * (x.ndim - 1)), x, np.nan).astype("f4"), preds)
    got, grads = value_and_grad(spoilt)
    np.testing.assert_allclose(got, values_among(case, keep)[keep].mean(), rtol=2e-5)
    for grad in jax.tree.leaves(grads):
        np.testing.assert_array_equal(grad[~keep], 0.0)
    slope = (value_and_grad(moved(2e-3))[0] - value_and_grad(moved(-2e-3))[0]) / 4e-3
    along = sum((g * d).sum() for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True))
    np.testing.assert_allclose(along, slope, rtol=0.02, atol=2e-3)  # of differences in float32


@pytest.mark.parametrize("case", ALONE)
@pytest.mark.some(8)
def test_batches_of_any_size_give_the_value_of_one_pass(case):
    loss, target, preds, expected = CASES[case]
    metric, cuts = LossMetric(loss), (slice(0, 2), slice(2, 4), slice(4, N))
    batches = [
        {"target": rows_of(target, c), "preds": rows_of(preds, c), "sample_weight": WEIGHT[c].astype("f4")}
        for c in cuts
    ]
    a, b, c = jax.jit(lambda batches: [metric.batch_updates(**batch) for batch in batches])(batches)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b, c).aggregate()
    for merged in (together, a.merge(b.merge(c)), a.merge(b).merge(c)):
        np.testing.assert_allclose(merged.compute(), np.average(expected, weights=WEIGHT), rtol=2e-5)


@pytest.mark.parametrize("case", ["focal", "categorical_hinge", "quantiles", "info_nce"])
def test_bfloat16_is_computed_in_float32(case):
    loss, target, preds, _ = CASES[case]
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), preds)
    wide = jax.tree.map(lambda x: x.astype("f4"), half)
    call = jax.jit(lambda preds: loss(target=narrow(target), preds=preds))
    np.testing.assert_allclose(call(half), call(wide), rtol=1e-6, strict=True)


def test_against_scikit_learn():
    got = losses.CategoricalHinge()(target=LABELS, preds=LOGITS.astype("f4"), sample_weight=WEIGHT.astype("f4"))
    expected = sklearn.metrics.hinge_loss(LABELS, LOGITS, labels=range(C), sample_weight=WEIGHT)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    got = losses.Quantile(0.3)(target=REAL[:, 0].astype("f4"), preds=RATES[:, 0].astype("f4"))
    expected = sklearn.metrics.mean_pinball_loss(REAL[:, 0], RATES[:, 0], alpha=0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    rates = [RATES[:, :1].astype("f4"), (RATES[:, :1] * 1.5).astype("f4")]
    got = [losses.Poisson()(target=COUNTS[:, :1], preds=rate) for rate in rates]
    expected = [sklearn.metrics.mean_poisson_deviance(COUNTS[:, 0], rate[:, 0]) for rate in rates]
    np.testing.assert_allclose(got[0] - got[1], (expected[0] - expected[1]) / 2, rtol=1e-4)


def test_focal_without_gamma_is_the_cross_entropy():
    for options, target in (({}, LABELS), ({"label_smoothing": 0.1}, LABELS), ({"binary": True}, SIGNS)):
        preds = (LOGITS if target is LABELS else REAL).astype("f4")
        got = losses.FocalCrossEntropy(gamma=0.0, **options)(target=target, preds=preds)
        np.testing.assert_allclose(got, losses.CrossEntropy(**options)(target=target, preds=preds), rtol=1e-5)


def test_extreme_predictions_stay_finite():
    same, one_hot = jnp.ones((1, 3)), jnp.eye(2)

    @jax.jit
    @jax.grad
    def grad(x):
        sure = losses.FocalCrossEntropy(gamma=0.5)(target=jnp.array([0]), preds=x["sure"])
        apart = losses.Contrastive()(target=jnp.array([0]), preds=(x["same"], x["same"]))
        return sure + apart + losses.Triplet()(preds=(x["same"],) * 3) + losses.InfoNCE()(preds=(x["zero"],) * 2)

    grads = grad({"sure": jnp.array([[200.0, 0.0]]), "same": same, "zero": jnp.zeros((2, 3))})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert losses.KLDivergence(from_logits=False)(target=one_hot, preds=one_hot) == 0.0


@pytest.mark.parametrize("from_indices", [True, False])
def test_a_logit_of_minus_infinity_excludes_a_class(from_indices):
    """Value and gradient are those without the class."""
    logits, index = jnp.array([[0.5, -1.0, 2.0]]), jnp.array([1])
    target = index if from_indices else jnp.array([[0.25, 0.75, 0.0]])
    kinds = [losses.FocalCrossEntropy(gamma=0.5), losses.CrossEntropy()]
    kinds += [losses.CategoricalHinge()] if from_indices else [losses.KLDivergence()]
    for loss in kinds:
        excluded = jax.value_and_grad(lambda x, loss=loss: loss(target=target, preds=x.at[0, 2].set(-jnp.inf)))(logits)
        fewer = target if from_indices else target[:, :2]
        without = jax.value_and_grad(lambda x, loss=loss, fewer=fewer: loss(target=fewer, preds=x[:, :2]))(logits)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), excluded, without)


class Towers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x[:, :4]), nn.Dense(3)(x[:, 4:])


def test_info_nce_compares_all_rows_of_the_batch_over_devices():
    x = np.random.default_rng(1).normal(size=(16, 8)).astype("f4")
    trainer = eg.Trainer(Towers(), losses.InfoNCE(), optimizer=optax.sgd(0.5), strategy="data_parallel")
    trainer.init_on_batch(x)
    params = trainer.state.params

    @jax.jit
    def value(params, x):
        a, b = Towers().apply({"params": params}, x)
        a, b = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
        return optax.softmax_cross_entropy_with_integer_labels(a @ b.T / 0.07, jnp.arange(len(x))).mean()

    expected, grads = jax.value_and_grad(value)(params, x)
    logs = trainer.train_on_batch(x)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), trainer.state.params, moved)
    # 13 rows cannot be divided over the devices.
    got = trainer.evaluate(x[:13], batch_size=13, verbose=0)["loss"]
    np.testing.assert_allclose(got, value(trainer.state.params, x[:13]), rtol=1e-5)


BAD = {
    "poisson": (losses.Poisson(), -np.ones(3), None, "Poisson: the targets are counts, but the smallest is -1"),
    "hinge": (losses.Hinge(), np.array([0, 2]), None, r"Hinge: the targets are -1 and 1.*but there are \[2"),
    "categorical_hinge": (losses.CategoricalHinge(), np.array([4]), LOGITS, "CategoricalHinge: the target contains 4"),
    "focal": (losses.FocalCrossEntropy(), np.array([-1]), LOGITS, "FocalCrossEntropy: the target contains -1"),
    "ctc": (losses.CTC(), np.array([[1, -1, 3]]), FRAMES, "CTC: the target contains 3"),
    "contrastive": (losses.Contrastive(), np.array([-1, 1]), None, r"1 for similar pairs and 0 for others, not \[-1"),
}


@pytest.mark.parametrize("case", BAD)
def test_targets_out_of_range(case):
    loss, target, preds, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        loss.target_check(target, preds)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: losses.Quantile(1.0), ValueError, "q=1.0 must be a number between 0 and 1"),
        (lambda: losses.FocalCrossEntropy(gamma=-1.0), ValueError, "gamma=-1.0 must be 0 or more"),
        (lambda: losses.FocalCrossEntropy(alpha=2, binary=True), ValueError, "must be one number in"),
        (lambda: losses.FocalCrossEntropy(label_smoothing=1.0), ValueError, "label_smoothing=1.0 must be in"),
        (lambda: losses.FocalCrossEntropy(alpha=(1, 2))(LABELS, LOGITS), ValueError, "2 factors for 4 classes"),
        (lambda: losses.FocalCrossEntropy()(REAL[:, 0], REAL[:, 0]), ValueError, r"FocalCrossEntropy\(binary=True\)"),
        (lambda: losses.CategoricalHinge()(REAL[:, 0], LOGITS), TypeError, "CategoricalHinge: .* indices"),
        (lambda: losses.KLDivergence()(REAL[:, 0], REAL[:, 0]), ValueError, "shape .batch, ..., classes"),
        (lambda: losses.Quantile((0.1, 0.9))(REAL, QUANTILES), ValueError, "For 2 quantiles"),
        (lambda: losses.CTC()(SPOKEN, LOGITS), ValueError, "CTC: target has shape .* and preds"),
        (lambda: losses.CTC()(SPOKEN * 1.0, FRAMES), TypeError, "the labels must be integers"),
        (lambda: losses.CTC()(SPOKEN, (FRAMES, LENGTHS[:2])), ValueError, r"frames have shape \(2,\)"),
        (lambda: losses.Triplet()(preds=(FIRST, SECOND)), ValueError, "preds has 2 parts"),
        (lambda: losses.Triplet()(preds=FIRST), TypeError, r"a tuple \(anchor, positive, negative\)"),
        (lambda: losses.Contrastive()(SIGNS, (FIRST, SECOND)), ValueError, "need one label for each pair"),
        (lambda: losses.Contrastive()(ALIKE, (FIRST, LOGITS)), ValueError, "must have the same"),
        (lambda: losses.InfoNCE(0.0), ValueError, "temperature=0.0 must be positive"),
        (lambda: losses.InfoNCE()(preds=(FRAMES, FRAMES)), ValueError, r"must have shape \(batch, features\)"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_names():
    assert [loss.name for loss in (losses.KLDivergence(), losses.InfoNCE(), losses.CTC(), losses.Focal())] == [
        "kl_divergence",
        "info_nce",
        "ctc",
        "focal_cross_entropy",
    ]
    assert losses.Pinball is losses.Quantile
    assert losses.TripletMargin is losses.Triplet
    assert not losses.InfoNCE().rows_are_independent
