"""What every metric promises: a fixed structure, and the same value however the data is cut up."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elegy import metrics as em
from elegy.errors import FrozenError
from elegy.losses import CrossEntropy, Huber
from elegy.metrics.function import as_metric
from elegy.metrics.metric import Metric
from elegy.pytree import field, static_field
from elegy.strategies.strategy import struct_of

N, C = 24, 4
RNG = np.random.default_rng(0)
CLASSES = {"target": RNG.integers(0, C, size=N), "preds": RNG.normal(size=(N, C)).astype("f4")}
BINARY = {"target": RNG.integers(0, 2, size=N), "preds": RNG.uniform(size=N).astype("f4")}
LABELS = {"target": RNG.integers(0, 2, size=(N, 3)), "preds": RNG.uniform(size=(N, 3)).astype("f4")}
REAL = {"target": RNG.normal(size=(N, 2)).astype("f4"), "preds": RNG.normal(size=(N, 2)).astype("f4")}
TOKENS = {"target": RNG.integers(0, 4, size=(N, 5)), "preds": RNG.integers(0, 4, size=(N, 6))}
PIXELS = {key: RNG.uniform(size=(N, 12, 12, 1)).astype("f4") for key in ("target", "preds")}
VALUES = {"values": RNG.normal(size=(N, 2)).astype("f4")}
WEIGHT = (RNG.uniform(size=N) * (RNG.uniform(size=N) > 0.25)).astype("f4")

CASES = {
    "accuracy": (em.Accuracy(), CLASSES),
    "accuracy_macro": (em.Accuracy(num_classes=C, average="macro"), CLASSES),
    "accuracy_top_k": (em.Accuracy(top_k=2), CLASSES),
    "accuracy_binary": (em.Accuracy(), BINARY),
    "accuracy_subset": (em.Accuracy(mode="multilabel", subset_accuracy=True), LABELS),
    "accuracy_samples": (em.Accuracy(mode="multilabel", average="samples"), LABELS),
    "precision": (em.Precision(), BINARY),
    "recall": (em.Recall(num_classes=C, average="none"), CLASSES),
    "f1": (em.F1(mode="multilabel", num_classes=3, average="weighted"), LABELS),
    "fbeta": (em.FBeta(beta=2.0), BINARY),
    "binary_accuracy": (em.BinaryAccuracy(), BINARY),
    "binary_cross_entropy": (em.BinaryCrossEntropy(), BINARY),
    "confusion_matrix": (em.ConfusionMatrix(C, "true"), CLASSES),
    "auc": (em.AUC(51), BINARY),
    "auc_pr": (em.AUC(51, "PR"), BINARY),
    "mae": (em.MeanAbsoluteError(), REAL),
    "mse": (em.MeanSquareError(), REAL),
    "rmse": (em.RootMeanSquareError(), REAL),
    "r2": (em.R2(2), REAL),
    "perplexity": (em.Perplexity(), CLASSES),
    "mcc": (em.MatthewsCorrelation(C), CLASSES),
    "precision_at_recall": (em.PrecisionAtRecall(0.5, num_bins=51), BINARY),
    "explained_variance": (em.ExplainedVariance(2), REAL),
    "spearman": (em.SpearmanCorrelation((-3, 3), num_bins=9), REAL),
    "word_error_rate": (em.WordErrorRate(ignore_index=0), TOKENS),
    "mean": (em.Mean(), VALUES),
    "sum": (em.Sum(), VALUES),
    "reduce": (em.Reduce("sum_over_batch_size"), VALUES),
    "loss": (as_metric(CrossEntropy()), CLASSES),
    "loss_sum": (as_metric(Huber(reduction="sum")), REAL),
    "function": (as_metric(lambda target, preds: preds - target, "difference"), REAL),
    "indexed": (em.Mean().index_into(values=("a", 0)), {"values": {"a": [VALUES["values"]]}}),
    "renamed": (em.MeanAbsoluteError().rename_arguments(target="preds", preds="target"), REAL),
    "metrics": (em.Metrics([em.MeanSquareError(), em.R2(2)]), REAL),
    "losses": (em.Losses([Huber(), Huber(reduction="sum")]), REAL),
    "all": (em.LossesAndMetrics(Huber(), em.R2(2)), REAL),
}

FURTHER = {
    "kappa": (em.CohenKappa(C), CLASSES),
    "balanced_accuracy": (em.BalancedAccuracy(C), CLASSES),
    "jaccard": (em.JaccardIndex(C), CLASSES),
    "dice": (em.Dice(C), CLASSES),
    "top_k": (em.TopKAccuracy(2), CLASSES),
    "average_precision": (em.AveragePrecision(51), BINARY),
    "recall_at_precision": (em.RecallAtPrecision(0.5, num_bins=51), BINARY),
    "sensitivity_at_specificity": (em.SensitivityAtSpecificity(0.5, num_bins=51), BINARY),
    "specificity_at_sensitivity": (em.SpecificityAtSensitivity(0.5, num_bins=51), BINARY),
    "calibration": (em.ExpectedCalibrationError(), CLASSES),
    "pearson": (em.PearsonCorrelation(2), REAL),
    "cosine": (em.CosineSimilarity(), REAL),
    "mape": (em.MeanAbsolutePercentageError(), REAL),
    "smape": (em.SymmetricMeanAbsolutePercentageError(), REAL),
    "psnr": (em.PSNR(), PIXELS),
    "ssim": (em.SSIM(), PIXELS),
    "edit_distance": (em.EditDistance(ignore_index=0), TOKENS),
    "bleu": (em.BLEU(2, smooth=True), TOKENS),
    "rouge": (em.RougeL(ignore_index=0), TOKENS),
    "frechet": (em.FrechetDistance(2), REAL),
}
"""Metrics whose cuts and merges test_metrics_further.py tests; here for the tests over devices."""


def structure(metric):
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(metric)], jax.tree.structure(metric)


def part(data, rows):
    return {**jax.tree.map(lambda x: x[rows], data), "sample_weight": WEIGHT[rows]}


def close(a, b, rtol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.some(12)
def test_structure_never_changes(case):
    metric, data = CASES[case]
    before = structure(metric)
    batch = jax.tree.map(jnp.asarray, part(data, slice(0, 8)))
    updates = metric.batch_updates(**batch)
    assert structure(updates) == before
    assert structure(metric.update(**batch)) == before
    assert structure(metric.merge(updates)) == before
    assert structure(updates.reset()) == before
    stacked = jax.tree.map(lambda *x: jnp.stack(x), updates, updates, updates)
    assert structure(stacked.aggregate()) == before
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(metric))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), updates.reset(), metric)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.some(12)
def test_any_cut_any_order_and_any_tree_give_the_value_of_one_pass(case):
    metric, data = CASES[case]
    expected = metric.batch_updates(**part(data, slice(None))).compute()

    def same(metric):
        close(metric.compute(), expected)

    order = np.random.default_rng(1).permutation(N)
    parts = [order[:8], order[8:8], order[8:]]
    updates = [metric.batch_updates(**part(data, rows)) for rows in parts]
    same(functools.reduce(lambda a, b: a.merge(b), updates, metric.reset()))
    same(functools.reduce(lambda a, b: b.merge(a), updates))
    a, b, c = updates
    same(a.merge(b.merge(c)))
    same(jax.tree.map(lambda *x: jnp.stack(x), *updates).aggregate())
    one_by_one = metric.reset()
    for rows in parts:
        one_by_one = one_by_one.update(**part(data, rows))
    same(one_by_one)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.some(12)
def test_rows_of_weight_zero_are_not_there(case):
    metric, data = CASES[case]
    keep = WEIGHT > 0
    expected = metric.batch_updates(**part(data, keep)).compute()
    if case == "reduce":  # divides by the number of real examples, weighted or not
        got = metric.batch_updates(**part(data, slice(None)), mask=keep).compute()
    else:
        got = metric.batch_updates(**part(data, slice(None))).compute()
    close(got, expected)


@pytest.mark.parametrize("case", sorted(set(CASES) - {"reduce"}))  # it divides by rows, whatever their weights are
@pytest.mark.some(12)
def test_billions_of_rows_are_summed_as_exactly_as_a_few(case):
    metric, data = CASES[case]
    first, second = (jax.tree.map(lambda x, a=a, b=b: x[a:b], data) for a, b in ((0, 10), (10, N)))

    @jax.jit
    def accumulate(metric):
        doubled = jax.lax.fori_loop(0, 27, lambda i, m: m.merge(m), metric.batch_updates(**first))
        return jax.lax.fori_loop(0, 2**13, lambda i, m: m.merge(metric.batch_updates(**second)), doubled)

    # 1.3 billion rows and 115 thousand, which a float32 of this size would not notice, as weights of a single pass.
    weight = np.where(np.arange(N) < 10, 2.0**27, 2.0**13).astype("f4")
    expected = metric.batch_updates(**data, sample_weight=weight).compute()
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6),
        accumulate(metric).compute(),
        expected,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.some(12)
def test_jit_scan_and_vmap(case):
    metric, data = CASES[case]
    batches = jax.tree.map(lambda x: jnp.asarray(x).reshape(4, N // 4, *x.shape[1:]), part(data, slice(None)))

    @jax.jit
    def over_scan(metric, batches):
        def step(metric, batch):
            return metric.merge(metric.batch_updates(**batch)), None

        return jax.lax.scan(step, metric, batches)[0]

    @jax.jit
    def over_vmap(metric, batches):
        return jax.vmap(lambda batch: metric.batch_updates(**batch))(batches).aggregate()

    expected = metric.batch_updates(**part(data, slice(None))).compute()
    for run in (over_scan, over_vmap):
        result = run(metric, batches)
        assert structure(result) == structure(metric)
        close(result.compute(), expected)


@pytest.mark.parametrize("case", sorted(set(CASES) - {"metrics", "losses", "all"}))
def test_call_returns_the_batch_value_and_the_merged_metric(case):
    metric, data = CASES[case]
    first = metric.batch_updates(**part(data, slice(0, 8)))
    value, merged = first(**part(data, slice(8, None)))
    close(value, metric.batch_updates(**part(data, slice(8, None))).compute())
    close(merged.compute(), metric.batch_updates(**part(data, slice(None))).compute())


@pytest.mark.parametrize("case", sorted(set(CASES) - {"metrics", "losses", "all"}))
def test_built_in_metrics_are_maskable(case):
    metric, data = CASES[case]
    assert metric.maskable(N, **jax.tree.map(struct_of, data))


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=12, max_size=12),
    cuts=st.lists(st.integers(0, 4).map(lambda k: 3 * k), max_size=4),
    seed=st.integers(0, 100),
)
@settings(max_examples=25)
def test_mean_and_r2_over_any_cut(values, cuts, seed):
    values = np.array(values, "f4")
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 4, size=len(values)).astype("f4")
    bounds = [0, *sorted(cuts), len(values)]
    mean, spread = em.Mean(), em.R2()
    for a, b in itertools.pairwise(bounds):
        w = weight[a:b]
        mean = mean.merge(mean.batch_updates(values=values[a:b], sample_weight=w))
        spread = spread.merge(spread.batch_updates(target=values[a:b], preds=np.zeros(b - a, "f4"), sample_weight=w))
    expected = np.average(values.astype("f8"), weights=weight) if weight.sum() else 0.0
    np.testing.assert_allclose(mean.compute(), expected, rtol=1e-4, atol=1e-2)
    variance = np.average((values.astype("f8") - expected) ** 2, weights=weight) * weight.sum() if weight.sum() else 0.0
    # The tolerance is that of float32 at the largest square, 1e6, of 12 values.
    np.testing.assert_allclose(spread.spread.value[0], variance, rtol=1e-4, atol=1.0)


# Metrics that users write


class Count(Metric):
    """The least there is to write: a sum."""

    count: jax.Array = field(default_factory=lambda: jnp.zeros((), jnp.int32))

    def update(self, preds):
        return self.replace(count=self.count + preds.shape[0])

    def compute(self):
        return self.count


class Largest(Metric):
    """Not a sum: the state's own reset and merge; aggregate follows."""

    value: jax.Array = field(default_factory=lambda: jnp.float32(-jnp.inf))

    def reset(self):
        return self.replace(value=jnp.float32(-jnp.inf))

    def update(self, preds, sample_weight=None):
        return self.replace(value=jnp.maximum(self.value, preds.max()))

    def merge(self, other):
        return self.replace(value=jnp.maximum(self.value, other.value))

    def compute(self):
        return self.value


class LargestByAggregate(Largest):
    """The same, from `aggregate`."""

    merge = Metric.merge

    def aggregate(self):
        return self.replace(value=self.value.max(axis=0))


@pytest.mark.parametrize("metric", [Largest(), LargestByAggregate()])
def test_merge_and_aggregate_follow_from_each_other(metric):
    parts = [metric.batch_updates(preds=jnp.array(p)) for p in ([-3.0, -5.0], [-1.0], [-2.0])]
    assert functools.reduce(lambda a, b: a.merge(b), parts).compute() == -1.0
    assert jax.tree.map(lambda *x: jnp.stack(x), *parts).aggregate().compute() == -1.0
    assert metric.maskable(2)


def test_a_sum_metric_needs_two_methods():
    parts = [Count().batch_updates(preds=jnp.zeros(n)) for n in (2, 3)]
    assert parts[0].merge(parts[1]).compute() == 5
    total = jax.tree.map(lambda *x: jnp.stack(x), *parts).aggregate()
    assert total.compute() == 5
    assert total.count.dtype == jnp.int32
    assert not Count().maskable(2)


def test_a_metric_with_its_own_init():
    class Scaled(em.Mean):
        factor: float = static_field()

        def __init__(self, factor):
            super().__init__(name="scaled_mean")
            self.factor = factor

        def compute(self):
            return self.factor * super().compute()

    metric = Scaled(2.0).update(values=jnp.array([1.0, 2.0]))
    assert (metric.compute(), metric.name) == (3.0, "scaled_mean")


def test_names_and_immutability():
    assert [m.name for m in (em.Accuracy(), em.F1(), em.R2(), em.AUC(), em.MAE())] == [
        "accuracy",
        "f1",
        "r2",
        "auc",
        "mean_absolute_error",
    ]
    assert em.Accuracy(name="top").compute_logs().keys() == {"top"}
    assert em.Mean().index_into(values=0).name == "mean"
    with pytest.raises(FrozenError):
        em.Mean().total = 3
    assert all(hasattr(em, name) for name in em.__all__)


def test_dtype():
    metric = em.Mean(dtype="bfloat16")
    for _ in range(300):  # a sum in bfloat16 stops growing at 256
        metric = metric.update(values=jnp.ones(1))
    assert metric.total.value == 300.0
    assert metric.compute() == 1


def test_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Metric()


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (em.Accuracy, r"write Accuracy\(\.\.\.\)"),
        ("accuracy", "'accuracy' cannot be used as a metric"),
        (int, "int cannot be used as a metric"),
    ],
)
def test_objects_that_are_not_metrics(thing, message):
    with pytest.raises(TypeError, match=message):
        as_metric(thing)
