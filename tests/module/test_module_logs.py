"""`log` and `add_loss`: what a step reports, and what the epoch shows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import regression

import elegy as eg
from elegy.errors import StepError
from elegy.metrics import LossesAndMetrics, Mean
from elegy.module.logs import ScalarLog

X, Y = regression(24)
UNEVEN = ((0, 8), (8, 10), (10, 24))


class Reporter(eg.ElegyModule):
    """A managed module whose step reports what a function says."""

    report: Any = eg.static_field(default=None)
    seen: Mean = eg.field(default_factory=Mean)
    other: Mean = eg.field(default_factory=Mean)

    def managed_init_step(self, key, batch):
        return self.replace(params={"w": jnp.ones(3)})

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean(batch[0] @ self.params["w"]), self.report.value(self, batch)

    def managed_test_step(self, key, batch, batch_idx):
        return self.report.value(self, batch)


def state_of(report, cls=Reporter, **fields):
    module = cls(report=eg.Static(report), optimizer=eg.Optimizer(optax.sgd(0.0)), **fields)
    return module.init_step(jax.random.key(0), (X, Y))


def run(state, phase, slices=UNEVEN):
    for index, (start, stop) in enumerate(slices):
        batch = X[start:stop], Y[start:stop]
        logs, state = state.train_step(batch, index, 0) if phase == "train" else state.test_step(batch, index)
    return logs, state


PER_BATCH = [float(X[a:b, 0].max()) for a, b in UNEVEN]
SIZES = [b - a for a, b in UNEVEN]


@pytest.mark.parametrize("phase", ["train", "test"])
@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("mean", np.average(PER_BATCH, weights=SIZES)),
        ("sum", np.sum(PER_BATCH)),
        ("min", np.min(PER_BATCH)),
        ("max", np.max(PER_BATCH)),
        ("last", PER_BATCH[-1]),
    ],
)
def test_scalars_reduce_over_the_epoch(phase, reduce, expected):
    state = state_of(lambda self, batch: self.log("top", jnp.max(batch[0][:, 0]), reduce=reduce))
    logs, state = run(state, phase)
    np.testing.assert_allclose(logs["top"], expected, rtol=1e-6)
    assert logs["top"].dtype == jnp.float32
    logs, _ = run(state.reset_step(), phase, UNEVEN[:1])
    np.testing.assert_allclose(logs["top"], PER_BATCH[0], rtol=1e-6)


def test_mean_is_the_default_and_python_numbers_are_scalars():
    logs, _ = run(state_of(lambda self, batch: self.log("n", len(batch[0])).log("b", True)), "test")
    np.testing.assert_allclose(logs["n"], np.average(SIZES, weights=SIZES), rtol=1e-6)
    assert float(logs["b"]) == 1.0


@pytest.mark.parametrize("phase", ["train", "test"])
def test_metrics_are_merged_into_their_field_and_computed(phase):
    def report(self, batch):
        return self.log("seen", self.seen.batch_updates(values=batch[0][:, 0])).log(
            "other", self.other.batch_updates(values=batch[0][:, 1], sample_weight=batch[0][:, 2] ** 2)
        )

    logs, state = run(state_of(report), phase)
    np.testing.assert_allclose(logs["seen"], X[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["other"], np.average(X[:, 1], weights=X[:, 2] ** 2), rtol=1e-5)
    np.testing.assert_array_equal(state.seen.compute(), logs["seen"])
    logs, _ = run(state.reset_step(), phase, UNEVEN[:1])
    np.testing.assert_allclose(logs["seen"], X[:8, 0].mean(), rtol=1e-5)


def test_one_metric_logged_twice_in_a_step_counts_both():
    def report(self, batch):
        for column in (0, 1):
            self = self.log("seen", self.seen.batch_updates(values=batch[0][:, column]))
        return self

    logs, _ = run(state_of(report), "test")
    last = [value for name, value in logs.items() if name.startswith("seen")][-1]
    np.testing.assert_allclose(last, X[:, :2].mean(), rtol=1e-5)


def test_a_metric_that_computes_a_dict_shows_each_of_its_values():
    class Both(eg.ElegyModule):
        pair: LossesAndMetrics = eg.field(
            default_factory=lambda: LossesAndMetrics(metrics={"a": eg.metrics.MeanAbsoluteError()})
        )

        def managed_test_step(self, key, batch, batch_idx):
            return self.log("pair", self.pair.batch_updates(target=batch[1], preds=0 * batch[1]))

    state = Both(key=jax.random.key(0))
    logs, _ = state.test_step((X, Y), 0)
    (value,) = [v for name, v in logs.items() if name.endswith("a")]
    np.testing.assert_allclose(value, np.abs(Y).mean(), rtol=1e-5)


def test_the_order_is_losses_first_then_as_logged():
    def report(self, batch):
        return self.log("zebra", 1.0).add_loss("kl", 2.0).log("apple", 3.0).add_loss("penalty", 4.0)

    logs, _ = run(state_of(report), "train")
    assert list(logs) == ["loss", "kl", "penalty", "zebra", "apple"]


def test_added_losses_are_part_of_the_total_and_of_the_gradient():
    class Penalised(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params={"w": jnp.full(3, 2.0)})

        def apply(self, key, inputs, training):
            penalty = 0.5 * jnp.sum(self.params["w"] ** 2)
            return inputs @ self.params["w"], self.add_loss("penalty", penalty)

    def mae(target, preds):
        return jnp.abs(preds - target)

    optimizer = eg.Optimizer(optax.sgd(1.0))
    state = Penalised(optimizer=optimizer, losses_and_metrics=LossesAndMetrics(mae)).init_step(jax.random.key(0), X)
    batch = X, Y[:, 0]
    logs, after = state.train_step(batch, 0, 0)
    error = X @ np.full(3, 2.0) - Y[:, 0]
    np.testing.assert_allclose(logs["mae"], np.abs(error).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["penalty"], 6.0, rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], np.abs(error).mean() + 6.0, rtol=1e-5)
    gradient = np.mean(np.sign(error)[:, None] * X, 0) + 2.0
    np.testing.assert_allclose(after.params["w"], 2.0 - gradient, rtol=1e-4, atol=1e-5)  # sums of float32
    logs, _ = state.test_step(batch, 0)
    np.testing.assert_allclose(logs["loss"], np.abs(error).mean() + 6.0, rtol=1e-5)


def test_a_module_may_train_on_added_losses_alone():
    class Prior(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params={"w": jnp.full(3, 2.0)})

        def apply(self, key, inputs, training):
            return inputs, self.add_loss("prior", jnp.sum(self.params["w"] ** 2))

    state = Prior(optimizer=eg.Optimizer(optax.sgd(0.25))).init_step(jax.random.key(0), X)
    logs, after = state.train_step(X, 0, 0)
    assert {name: float(v) for name, v in logs.items()} == {"loss": 12.0, "prior": 12.0}
    np.testing.assert_array_equal(after.params["w"], np.ones(3, np.float32))


@pytest.mark.parametrize("phase", ["train", "test"])
def test_duplicate_names_get_numbers_in_order(phase):
    logs, _ = run(state_of(lambda self, batch: self.log("a", 1.0).log("a", 2.0).log("a", 3.0)), phase)
    assert {name: float(v) for name, v in logs.items() if name != "loss"} == {"a": 1.0, "a_1": 2.0, "a_2": 3.0}


def test_a_log_called_loss_beside_the_total_gets_a_number():
    logs, _ = run(state_of(lambda self, batch: self.log("loss", 5.0)), "train", UNEVEN[:1])
    assert list(logs) == ["loss", "loss_1"]
    assert float(logs["loss_1"]) == 5.0
    np.testing.assert_allclose(logs["loss"], X[:8].sum(1).mean(), rtol=1e-5)


def test_a_scalar_and_a_metric_of_one_name_are_both_shown():
    def report(self, batch):
        return self.log("seen", self.seen.batch_updates(values=batch[0][:, 0])).log("seen", 9.0)

    logs, _ = run(state_of(report), "test")
    assert list(logs) == ["seen", "seen_1"]
    assert float(logs["seen_1"]) == 9.0


# what is wrong


def test_logs_whose_names_change_are_an_error_that_lists_both():
    state = state_of(lambda self, batch: self.log("a", 1.0).log("size" if len(batch[0]) == 8 else "length", 1.0))
    with pytest.raises(StepError, match=r"train step changed.*size \(mean\), now it logs.*length \(mean\)"):
        run(state, "train")


def test_logs_whose_reduction_changes_are_an_error():
    state = state_of(lambda self, batch: self.log("a", 1.0, reduce="min" if len(batch[0]) == 8 else "max"))
    with pytest.raises(StepError, match=r"a \(min\).*a \(max\)"):
        run(state, "test")


def test_a_step_that_stops_logging_is_an_error():
    state = state_of(lambda self, batch: self.log("a", 1.0) if len(batch[0]) == 8 else self)
    with pytest.raises(StepError, match=r"a \(mean\), now it logs nothing"):
        run(state, "test")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda m: m.log("a", jnp.ones(3)), r"log\('a', ...\): the value must be a scalar, but its shape is \(3,\)"),
        (lambda m: m.log("a", "text"), r"log\('a', ...\): the value must be a scalar or a Metric, not a str"),
        (lambda m: m.log("a", None), r"log\('a', ...\): the value must be a scalar or a Metric, not a NoneType"),
        (lambda m: m.log("a", 1.0, reduce="median"), r"reduce must be one of mean, sum, min, max, last"),
        (lambda m: m.log("nothing", Mean()), r"Reporter has no metric field 'nothing'.*Metric fields: seen, other"),
        (lambda m: m.log("params", Mean()), r"no metric field 'params'"),
        (lambda m: m.add_loss("a", jnp.ones((2, 2))), r"add_loss\('a', ...\).*its shape is \(2, 2\)"),
    ],
)
def test_what_cannot_be_logged_is_refused_at_once(log, message):
    with pytest.raises(ValueError, match=message):
        log(Reporter())


def test_a_metric_of_another_kind_than_the_field_is_refused():
    updates = eg.metrics.MeanAbsoluteError().batch_updates(target=Y, preds=Y)
    with pytest.raises(ValueError, match=r"given a MeanAbsoluteError.*'seen' of Reporter is a Mean\b"):
        Reporter().log("seen", updates)


def test_logging_is_pure_and_leaves_no_pending_entries():
    state = state_of(lambda self, batch: self.log("a", 1.0))
    assert state.log("a", 2.0) is not state
    assert state._logs.pending == ()
    _, after = run(state, "test", UNEVEN[:1])
    assert after._logs.pending == ()


# the accumulator


@pytest.mark.parametrize("reduce", ["mean", "sum", "min", "max", "last"])
def test_accumulators_merge_in_any_grouping(reduce):
    rng = np.random.default_rng(0)
    parts = [ScalarLog.of(rng.normal(), rng.integers(1, 9), reduce) for _ in range(6)]

    def fold(some):
        total = ScalarLog.empty(reduce)
        for part in some:
            total = total.merge(part)
        return total

    whole = fold(parts).compute()
    for cut in range(7):
        grouped = fold(parts[:cut]).merge(fold(parts[cut:])).compute()
        np.testing.assert_allclose(grouped, whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("reduce", "expected"), [("mean", 18.0 / 6), ("sum", 8.0), ("min", 1.0), ("max", 4.0), ("last", 18.0 / 6)]
)
def test_aggregate_combines_replicas(reduce, expected):
    parts = [ScalarLog.of(v, n, reduce) for v, n in ((1.0, 1), (4.0, 2), (3.0, 3))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    np.testing.assert_allclose(stacked.aggregate().compute(), expected, rtol=1e-6)


@pytest.mark.parametrize(("reduce", "expected"), [("mean", 0.1), ("sum", 0.1 * 10**6)])
def test_logs_of_a_million_steps_do_not_drift(reduce, expected):
    def step(_, log):
        update = jax.tree.map(lambda leaf: leaf[None], ScalarLog.of(0.1, 3.0, reduce)).aggregate()  # of one device
        return log.merge(update)

    log = jax.jit(lambda log: jax.lax.fori_loop(0, 10**6, step, log))(ScalarLog.empty(reduce))
    np.testing.assert_allclose(log.compute(), expected, rtol=1e-7)
    assert log.weight.value == 3e6
