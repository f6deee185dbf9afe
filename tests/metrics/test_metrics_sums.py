"""Compensated sums against Python's integers and NumPy in float64, compiled as in a loop of steps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boring_modules import compilations
from hypothesis import given, settings
from hypothesis import strategies as st

import elegy as eg
from elegy import metrics as em
from elegy.losses import CrossEntropy
from elegy.metrics.sums import CompensatedSum, add_trees, binned_sums, sum_leading_axis


def exact(total: CompensatedSum) -> int:
    return int(total.value) + int(total.rest)


@jax.jit
def add_many(total, summand, steps):
    return jax.lax.fori_loop(0, steps, lambda i, total: total + summand, total)


@pytest.mark.parametrize("summand", [0.1, 1 / 3, 1e-3])
@pytest.mark.parametrize("steps", [100_000, 2_000_000])
def test_a_compiled_loop_does_not_drift(summand, steps):
    total = add_many(CompensatedSum.zeros(), jnp.float32(summand), steps)
    expected = float(np.float32(summand)) * steps
    assert abs(float(total.value) / expected - 1) < 1e-7  # half a digit of float32
    assert abs((float(total.value) + float(total.rest)) / expected - 1) < 1e-12
    assert abs(float(np.cumsum(np.full(steps, summand, "f4"))[-1]) / expected - 1) > 1e-6  # what float32 alone does


def test_counts_go_on_beyond_the_digits_of_float32():
    for start in (2**24, 10**10):
        total = CompensatedSum.of(float(start)) + float(start - int(np.float32(start)))
        assert exact(add_many(total, jnp.float32(1), 1001)) == start + 1001


@given(st.lists(st.integers(0, 2**24), min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_merged_in_any_order_and_by_any_tree_counts_are_exact(counts, random):
    sums = [CompensatedSum.of(float(count)) for count in counts]
    stacked = CompensatedSum(jnp.stack([one.parts for one in sums]))
    assert exact(stacked.aggregate()) == sum(counts)
    while len(sums) > 1:
        random.shuffle(sums)
        sums.append(sums.pop() + sums.pop())
    assert exact(sums[0]) == sum(counts)


def test_summands_are_broadcast_and_widened():
    total = CompensatedSum.zeros((3,)) + 2.0 + CompensatedSum.of(jnp.arange(3.0))
    np.testing.assert_array_equal((CompensatedSum.of(1.0) + total).value, [3.0, 4.0, 5.0])
    with jax.enable_x64(True):
        wide = total + CompensatedSum.of(0.25, jnp.float64)
        assert wide.parts.dtype == jnp.float64
        np.testing.assert_array_equal(wide.value, [2.25, 3.25, 4.25])


def test_sums_that_cancel():
    values = np.random.default_rng(0).normal(size=1000).astype("f4") * 1e6
    total = functools.reduce(
        lambda a, b: a + b, [*map(float, values), *map(float, -values), 0.5], CompensatedSum.zeros()
    )
    assert total.value == 0.5


def test_infinity_and_nan_stay_what_they_are():
    one = CompensatedSum.of(1.0)
    for total in (one + jnp.inf, CompensatedSum.of(jnp.inf) + one, one + jnp.inf + 1.0, CompensatedSum.of(3e38) + 3e38):
        assert total.value == jnp.inf
    assert (one + -jnp.inf).value == -jnp.inf
    assert jnp.isnan((one + jnp.nan + 1.0).value)
    assert jnp.isnan((one + jnp.inf + -jnp.inf).value)


def test_arrays_trees_and_scales():
    a, b = (CompensatedSum.of(jnp.array(v)) for v in ([1.0, 2.0**25], [2.0, 1.0]))
    tree = add_trees({"sum": a, "count": jnp.int32(1), "none": None}, {"sum": b, "count": jnp.int32(2), "none": None})
    np.testing.assert_array_equal(tree["sum"].value + 0.0, [3.0, 2.0**25])
    np.testing.assert_array_equal(tree["sum"].rest, [0.0, 1.0])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), tree, tree, tree)
    summed = sum_leading_axis(stacked)
    assert summed["count"] == 9
    np.testing.assert_array_equal(np.asarray(summed["sum"].parts, "f8").sum(0), [9.0, 3 * (2**25 + 1)])
    np.testing.assert_array_equal(np.asarray(tree["sum"].scale(2.0).parts, "f8").sum(0), [6.0, 2 * (2**25 + 1)])


def test_the_gradient_is_that_of_a_sum():
    grads = jax.grad(lambda x: ((CompensatedSum.of(x) + 2 * x) + CompensatedSum.of(x * x)).value)(jnp.float32(3.0))
    assert grads == 3 + 2 * 3.0


@pytest.mark.parametrize("n", [10, 5000, 300_000])
@pytest.mark.parametrize("bins", [2, 1000])
def test_bins(n, bins):
    rng = np.random.default_rng(0)
    index = np.where(rng.uniform(size=n) < 0.9, 1, rng.integers(-2, bins + 2, size=n))  # most of them in one bin
    weight = np.full(n, 0.1, "f4")
    inside = (index >= 0) & (index < bins)
    expected = np.bincount(index[inside], weights=weight[inside].astype("f8"), minlength=bins)
    got = jax.jit(binned_sums, static_argnums=2)(jnp.asarray(index), jnp.asarray(weight), bins)
    np.testing.assert_allclose(got, expected, rtol=2e-7)


def test_a_metric_of_ones_own_with_such_a_field():
    class Total(eg.metrics.Metric):
        total: CompensatedSum = eg.field(default_factory=CompensatedSum.zeros)

        def update(self, preds):
            return self.replace(total=self.total + jnp.sum(preds))

        def compute(self):
            return self.total.value

    step = jax.jit(lambda metric, preds: jax.lax.fori_loop(0, 10**6, lambda i, m: m.update(preds=preds), metric))
    metric = step(Total(), jnp.float32(0.1))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), metric, metric.merge(metric))
    np.testing.assert_allclose(stacked.aggregate().compute(), 3e5, rtol=1e-7)
    assert metric.reset().compute() == 0


def test_metrics_are_constructed_without_compiling():
    with compilations() as names:
        (
            em.Losses(CrossEntropy()),
            em.AUC(57),
            em.ConfusionMatrix(13),
            em.PrecisionAtRecall(0.5),
            em.BLEU(),
            em.Accuracy(average="macro", num_classes=11),
        )
    assert set(names) <= {"jit(stage)"}  # JAX's own, once in a process, for the first copy to a device
