"""Means, regression metrics, AUC and perplexity against NumPy and scikit-learn, over uneven weighted batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.exceptions
import sklearn.metrics
from scipy.special import expit, log_softmax

import elegy as eg
from elegy import metrics
from elegy.metrics import AUC, R2, BinaryAccuracy, BinaryCrossEntropy, Mean, Perplexity, Reduce, Sum

RNG = np.random.default_rng(0)
N = 50
SPLITS = (0, 1, 50)
TARGET, PREDS = RNG.normal(size=(2, N, 3)).astype("f4")
WEIGHT = (RNG.uniform(size=N) * (RNG.uniform(size=N) > 0.3)).astype("f4")
MASK = np.arange(N) < 40


def over_batches(metric, sample_weight=None, mask=None, **arrays):
    arrays = {**arrays, "sample_weight": sample_weight, "mask": mask}
    for a, b in itertools.pairwise(SPLITS):
        batch = {k: None if v is None else v[a:b] for k, v in arrays.items()}
        metric = metric.merge(metric.batch_updates(**batch))
    return metric.compute()


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("shape", [(N,), (N, 3)])
def test_reduce(shape, weight, mask):
    values = PREDS.reshape(N, 3)[:, 0] if shape == (N,) else PREDS
    m = np.broadcast_to((np.ones(N) if mask is None else mask).reshape(-1, *(1,) * (len(shape) - 1)), shape)
    w = m * (np.ones(N) if weight is None else weight).reshape(-1, *(1,) * (len(shape) - 1)).astype("f8")
    total = (w * values.astype("f8")).sum()
    expected = {"sum": total, "sum_over_batch_size": total / m.sum(), "weighted_mean": total / w.sum()}
    for reduction, value in expected.items():
        got = over_batches(Reduce(reduction), weight, mask, values=values)
        np.testing.assert_allclose(got, value, rtol=1e-5)
    np.testing.assert_allclose(over_batches(Mean(), weight, mask, values=values), expected["weighted_mean"], rtol=1e-5)
    np.testing.assert_allclose(over_batches(Sum(), weight, mask, values=values), expected["sum"], rtol=1e-5)


def test_values_of_weight_zero_leak_nothing():
    values = jnp.array([1.0, jnp.nan, jnp.inf])
    assert Mean().update(values=values, sample_weight=jnp.array([2.0, 0.0, 0.0])).compute() == 1.0
    assert Mean().update(values=values, mask=jnp.array([True, False, False])).compute() == 1.0


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.bfloat16])
def test_state_stays_float32(dtype):
    state = Mean().update(values=jnp.ones(300, dtype))
    assert state.total.parts.dtype == state.count.parts.dtype == jnp.float32
    assert state.compute() == 1.0
    assert state.total.value == 300.0


def test_python_scalars():
    state = Mean().update(values=3.0).update(values=1, sample_weight=3)
    assert state.compute() == 1.5
    assert not state.total.parts.weak_type


def test_no_data_is_zero():
    assert Mean().compute() == 0.0
    assert Perplexity().compute() == 1.0


def test_reduction_errors():
    with pytest.raises(ValueError, match=r"'max' is not a reduction. Use a member of"):
        Reduce("max")
    with pytest.raises(ValueError, match="NONE does not give one number"):
        Reduce("none")
    with pytest.raises(ValueError, match="sample_weight has shape"):
        Mean().update(values=jnp.ones((4, 3)), sample_weight=jnp.ones(3))


SKLEARN = {
    "MeanAbsoluteError": sklearn.metrics.mean_absolute_error,
    "MAE": sklearn.metrics.mean_absolute_error,
    "MeanSquareError": sklearn.metrics.mean_squared_error,
    "MSE": sklearn.metrics.mean_squared_error,
    "RootMeanSquareError": lambda *a, **k: np.sqrt(sklearn.metrics.mean_squared_error(*a, **k)),
    "R2": sklearn.metrics.r2_score,
}


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("name", SKLEARN)
def test_regression(name, columns, weight):
    metric = R2(num_outputs=columns) if name == "R2" else getattr(metrics, name)()
    target, preds = TARGET[:, :columns], PREDS[:, :columns]
    expected = SKLEARN[name](target.astype("f8"), preds.astype("f8"), sample_weight=weight)
    np.testing.assert_allclose(over_batches(metric, weight, target=target, preds=preds), expected, rtol=1e-5)
    if columns == 1:
        got = over_batches(metric, weight, target=target[:, 0], preds=preds[:, 0])
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("multioutput", ["uniform_average", "variance_weighted", "raw_values"])
def test_r2_of_several_outputs(multioutput, weight):
    target = TARGET * np.array([1.0, 5.0, 0.1], "f4")
    preds = target + 0.3 * PREDS
    expected = sklearn.metrics.r2_score(target, preds, sample_weight=weight, multioutput=multioutput)
    got = over_batches(R2(3, multioutput), weight, target=target, preds=preds)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_r2_of_a_large_mean():
    # Sums of squares in float32 would have no digit left here: the mean is 1e4 times the spread.
    target = (1e4 + RNG.normal(size=N)).astype("f4")
    preds = (target + 0.3 * RNG.normal(size=N)).astype("f4")
    expected = sklearn.metrics.r2_score(target.astype("f8"), preds.astype("f8"))
    np.testing.assert_allclose(over_batches(R2(), target=target, preds=preds), expected, rtol=1e-3)


def test_r2_of_constant_targets():
    ones = jnp.ones(4)
    assert R2().update(target=ones, preds=ones).compute() == 1.0
    assert R2().update(target=ones, preds=2 * ones).compute() == 0.0
    assert R2(2, "variance_weighted").update(target=jnp.ones((4, 2)), preds=jnp.ones((4, 2))).compute() == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: R2(0), "must be 1 or more"),
        (lambda: R2(2, "mean"), "multioutput='mean' is not known"),
        (lambda: R2().update(target=TARGET, preds=PREDS), "pass num_outputs=3"),
        (lambda: AUC(1), "must be 2 or more"),
        (lambda: AUC(curve="roc"), "curve='roc' is not known"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_binary_means(shape, weight):
    p = RNG.uniform(size=shape).astype("f4")
    t = RNG.integers(0, 2, size=shape)
    got = over_batches(BinaryAccuracy(0.3), weight, target=t, preds=p)
    expected = sklearn.metrics.accuracy_score(t.ravel(), p.ravel() > 0.3, sample_weight=weight)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    expected = sklearn.metrics.log_loss(t.ravel(), p.ravel().astype("f8"), sample_weight=weight)
    np.testing.assert_allclose(over_batches(BinaryCrossEntropy(), weight, target=t, preds=p), expected, rtol=1e-5)
    logits = np.log(p) - np.log1p(-p)
    got = over_batches(BinaryCrossEntropy(from_logits=True), weight, target=t, preds=logits)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# AUC

SK_AUC = {"ROC": sklearn.metrics.roc_auc_score, "PR": sklearn.metrics.average_precision_score}


@pytest.mark.parametrize("weight", [None, WEIGHT + 0.01], ids=["even", "weighted"])
@pytest.mark.parametrize("levels", [3, 11, 101])
@pytest.mark.parametrize("curve", SK_AUC)
@pytest.mark.some(5)
def test_auc_is_exact_on_the_grid(curve, levels, weight):
    # Few levels: most pairs are tied.
    scores = (RNG.integers(0, levels, size=N) / (levels - 1)).astype("f4")
    labels = RNG.integers(0, 2, size=N)
    expected = SK_AUC[curve](labels, scores, sample_weight=weight)
    got = over_batches(AUC(levels, curve), weight, target=labels, preds=scores)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    finer = over_batches(AUC(100 * (levels - 1) + 1, curve), weight, target=labels, preds=scores)
    np.testing.assert_allclose(finer, expected, rtol=1e-5)


@pytest.mark.parametrize("bins", [11, 101, 2001])
def test_auc_error_is_bounded_by_pairs_that_share_a_bin(bins):
    scores, labels = RNG.uniform(size=N).astype("f4"), RNG.integers(0, 2, size=N)
    index = np.round(scores * (bins - 1))
    pairs = index[labels == 1][:, None] == index[labels == 0][None, :]
    got = over_batches(AUC(bins), target=labels, preds=scores)
    assert abs(got - sklearn.metrics.roc_auc_score(labels, scores)) <= 0.5 * pairs.mean() + 1e-6


def test_auc_from_logits():
    logits, labels = RNG.normal(size=N).astype("f4"), RNG.integers(0, 2, size=N)
    got = over_batches(AUC(from_logits=True), target=labels, preds=logits)
    np.testing.assert_array_equal(got, over_batches(AUC(), target=labels, preds=expit(logits)))


def test_auc_of_weight_zero_and_nan():
    labels, scores = np.array([0, 1, 1]), np.array([0.2, 0.8, np.nan], "f4")
    assert AUC().update(target=labels, preds=scores, sample_weight=jnp.array([1.0, 1.0, 0.0])).compute() == 1.0


@pytest.mark.parametrize("label", [0, 1])
def test_roc_auc_of_one_class_is_not_defined(label):
    labels, scores = np.full(4, label), np.array([0.2, 0.8, 0.4, 0.6], "f4")
    with pytest.warns(sklearn.exceptions.UndefinedMetricWarning):
        assert np.isnan(sklearn.metrics.roc_auc_score(labels, scores))
    one_class = AUC().update(target=labels, preds=scores)
    assert np.isnan(one_class.compute())
    assert one_class.update(target=1 - labels, preds=scores).compute() == 0.5
    assert np.isnan(AUC().compute())


def test_average_precision_of_one_class():
    scores = np.array([0.2, 0.8], "f4")
    assert AUC(curve="PR").update(target=np.ones(2), preds=scores).compute() == 1.0
    assert np.isnan(AUC(curve="PR").update(target=np.zeros(2), preds=scores).compute())  # recall is 0 / 0


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("options", [{}, {"from_logits": True}, {"curve": "PR"}], ids=str)
def test_auc_of_a_nan_that_counts(options, label):
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.2, 0.8, 0.4, 0.6], "f4")
    first = AUC(**options).batch_updates(target=labels, preds=scores)
    assert first.compute() == 1.0
    with pytest.raises(ValueError, match="NaN"):  # scikit-learn has no value for it either
        sklearn.metrics.roc_auc_score([*labels, label], [*scores, np.nan])
    second = AUC(**options).batch_updates(target=np.array([label]), preds=np.array([np.nan], "f4"))
    assert np.isnan(first.merge(second).compute())


def test_auc_target_check():
    AUC().target_check(np.array([0, 1]), np.array([0.0, 1.0]))
    AUC(from_logits=True).target_check(np.array([0, 1]), np.array([-3.0, 5.0]))
    with pytest.raises(ValueError, match=r"are 0 or 1, but there are \[2\]"):
        AUC().target_check(np.array([0, 2]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"range from -3 to 5.*from_logits=True"):
        AUC().target_check(np.array([0, 1]), np.array([-3.0, 5.0]))


# Perplexity


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
@pytest.mark.parametrize("ignore", [None, 2])
def test_perplexity(ignore, weight):
    logits, labels = RNG.normal(size=(N, 4, 5)).astype("f4"), RNG.integers(0, 5, size=(N, 4))
    nll = -np.take_along_axis(log_softmax(logits.astype("f8"), -1), labels[..., None], -1)[..., 0]
    w = np.broadcast_to((np.ones(N) if weight is None else weight)[:, None], labels.shape) * (labels != ignore)
    expected = np.exp(np.average(nll, weights=w))
    got = over_batches(Perplexity(ignore_index=ignore), weight, target=labels, preds=logits)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    probabilities = np.asarray(jax.nn.softmax(logits))
    got = over_batches(Perplexity(from_logits=False, ignore_index=ignore), weight, target=labels, preds=probabilities)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "classes", "ignore"), [("uint8", 256, None), ("uint8", 256, -100), ("int8", 128, 3)])
def test_perplexity_of_narrow_labels(dtype, classes, ignore):
    logits = np.random.default_rng(1).normal(size=(2, 3, classes)).astype("f4")
    top = np.iinfo(dtype).max
    labels = np.array([[top, top - 99, 2], [3, top, 3]], dtype)  # 156 is -100 in uint8
    nll = -np.take_along_axis(log_softmax(logits.astype("f8"), -1), labels.astype("i8")[..., None], -1)[..., 0]
    expected = np.exp(nll[labels.astype("i8") != ignore].mean())
    got = Perplexity(ignore_index=ignore).update(target=labels, preds=logits).compute()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_perplexity_ignores_an_index_out_of_range():
    labels = jnp.array([[0, 1, -100]])
    assert Perplexity(ignore_index=-100).update(target=labels, preds=jnp.zeros((1, 3, 4))).compute() == pytest.approx(4)


def test_either_spelling_works_in_both_places():
    assert eg.losses.Reduction is eg.metrics.Reduction
    assert eg.metrics.Reduction("mean") is eg.metrics.Reduction.weighted_mean is eg.losses.Reduction("weighted_mean")
    assert Reduce(eg.losses.Reduction.SUM).update(values=jnp.array([1.0, 2.0])).compute() == 3.0
    loss = eg.losses.MeanSquareError(reduction=eg.metrics.Reduction.sum)
    assert loss(target=jnp.zeros(2), preds=jnp.array([1.0, 2.0])) == 5.0
    for name in ("MeanSquareError", "MeanSquaredError"):
        metric = getattr(eg.metrics, name)().update(target=jnp.zeros(2), preds=jnp.array([1.0, 3.0]))
        assert metric.compute() == 5.0
    assert eg.metrics.RootMeanSquaredError is eg.metrics.RootMeanSquareError
