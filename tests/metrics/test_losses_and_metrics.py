import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elegy.losses import CrossEntropy, Loss, MeanAbsoluteError, MeanSquaredError
from elegy.metrics import (
    AUC,
    MSE,
    Accuracy,
    AuxLosses,
    AuxMetrics,
    ConfusionMatrix,
    Losses,
    LossesAndMetrics,
    Mean,
    Metric,
    Metrics,
)
from elegy.pytree import field
from elegy.regularizers import L2

RNG = np.random.default_rng(0)
N, D = 12, 3
INPUTS = RNG.normal(size=(N, D)).astype("f4")
TARGET = RNG.normal(size=N).astype("f4")
WEIGHT = RNG.uniform(0.5, 2.0, size=N).astype("f4")
W = RNG.normal(size=D).astype("f4")


def half(target, preds):
    return 0.5 * jnp.abs(preds - target)


def batch_mean(target, preds):
    return jnp.mean(jnp.square(preds - target))


# `batch_mean` is a scalar, which weights have no part in; the trainer's tests see the warning.
UNWEIGHTED = pytest.mark.filterwarnings("ignore:'(rest/)?batch_mean' returned a scalar")


def structure(state):
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)], jax.tree.structure(state)


def everything():
    losses = {"mse": MeanSquaredError(), "rest": [half, batch_mean, MeanAbsoluteError(reduction="sum"), L2(0.1)]}
    return LossesAndMetrics(losses, [MSE(), half, batch_mean]).with_aux(["kl"], ["norm"])


def kwargs_of(w, rows):
    preds = jnp.asarray(INPUTS[rows]) @ w
    return {
        "inputs": INPUTS[rows],
        "target": TARGET[rows],
        "preds": preds,
        "sample_weight": jnp.asarray(WEIGHT[rows]),
        "mask": None,
        "parameters": {"w": w},
        "batch_stats": None,
        "examples": len(preds),
        "aux_losses": {"kl": jnp.sum(w**2)},
        "aux_metrics": {"norm": jnp.sum(jnp.abs(w))},
    }


def expected_logs(cuts):
    """The epoch's values in float64 NumPy, from batches at `cuts`."""
    preds = INPUTS.astype("f8") @ W.astype("f8")
    error, w = preds - TARGET, WEIGHT.astype("f8")
    batches = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    means = np.average([np.mean(error[b] ** 2) for b in batches], weights=[b.stop - b.start for b in batches])
    losses = {
        "mse": np.average(error**2, weights=w),
        "rest/half": np.average(0.5 * np.abs(error), weights=w),
        "rest/batch_mean": means,
        "rest/mean_absolute_error": np.sum(w * np.abs(error)),
        "rest/l2": 0.1 * np.sum(W.astype("f8") ** 2),
        "kl": np.sum(W.astype("f8") ** 2),
    }
    shown = {
        "mean_square_error": np.average(error**2, weights=w),
        "half": losses["rest/half"],
        "batch_mean": means,
        "norm": np.sum(np.abs(W)),
    }
    return {"loss": sum(losses.values()), **losses, **shown}


@UNWEIGHTED
def test_an_epoch_of_uneven_batches():
    cuts = [0, 2, 9, 12]
    state, before = everything(), structure(everything())

    @jax.jit
    def step(state, kwargs):
        updates = state.batch_updates(**kwargs)
        return updates.total_loss(), state.merge(updates)

    for a, b in itertools.pairwise(cuts):
        _, state = step(state, kwargs_of(jnp.asarray(W), slice(a, b)))
        assert structure(state) == before
    logs, expected = state.compute_logs(), expected_logs(cuts)
    assert list(logs) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
    assert all(v.shape == () and v.dtype == jnp.float32 for v in logs.values())
    assert list(jax.jit(lambda s: s.compute_logs())(state)) == list(expected)


@UNWEIGHTED
def test_total_loss_is_the_loss_of_the_batch():
    updates = everything().batch_updates(**kwargs_of(jnp.asarray(W), slice(0, N)))
    np.testing.assert_allclose(updates.total_loss(), expected_logs([0, N])["loss"], rtol=1e-5)
    loss, merged = everything().loss_and_update(**kwargs_of(jnp.asarray(W), slice(0, N)))
    assert loss == updates.total_loss()
    assert merged.compute_logs()["loss"] == updates.compute_logs()["loss"]


@pytest.mark.parametrize("cuts", [[0, 1, 12], [0, 4, 4, 12]])
def test_gradients_of_replicas_sum_to_the_gradient(cuts):
    """Replicas with uneven parts, one without examples: bare JAX on all of the data is the reference.

    The batch mean is left out: no sum over replicas of means of parts is the mean of the whole.
    """
    state = LossesAndMetrics(
        [MeanSquaredError(), MeanAbsoluteError(reduction="sum"), half, L2(0.1)], None, aux_losses=["kl"]
    )

    def bare(w):
        error, weight = INPUTS @ w - TARGET, jnp.asarray(WEIGHT)
        square = jnp.sum(weight * error**2) / jnp.sum(weight)
        absolute = jnp.sum(weight * jnp.abs(error))
        return square + absolute + jnp.sum(weight * 0.5 * jnp.abs(error)) / jnp.sum(weight) + 1.1 * jnp.sum(w**2)

    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]

    def updates(w, rows):
        return state.batch_updates(**{**kwargs_of(w, rows), "aux_metrics": None})

    weights = [jax.jit(lambda w, rows=rows: updates(w, rows))(jnp.asarray(W)) for rows in parts]
    collected = []
    for part_weights in weights:
        part_weights.total_loss(lambda x: collected.append(x) or x)

    def summed(calls):
        # What a collective does: the k-th call of every replica is one sum.
        per_replica = len(collected) // len(parts)
        totals = [sum(collected[r * per_replica + k] for r in range(len(parts))) for k in range(per_replica)]
        return lambda x: totals[next(calls)]

    total = [
        jax.jit(jax.value_and_grad(lambda w, rows=rows: updates(w, rows).total_loss(summed(iter(range(9))))))(
            jnp.asarray(W)
        )
        for rows in parts
    ]
    expected = jax.value_and_grad(bare)(jnp.asarray(W))
    np.testing.assert_allclose(sum(v for v, _ in total), expected[0], rtol=1e-5)
    np.testing.assert_allclose(sum(g for _, g in total), expected[1], rtol=1e-4)


def test_total_loss_under_a_collective():
    state = LossesAndMetrics([MeanSquaredError(), L2(0.1)])
    weight = jnp.asarray(WEIGHT).reshape(3, 4)
    batch = (jnp.asarray(INPUTS).reshape(3, 4, D), jnp.asarray(TARGET).reshape(3, 4), weight)

    def replica(w, x, y, sw):
        def loss(w):
            updates = state.batch_updates(target=y, preds=x @ w, sample_weight=sw, parameters=w, examples=4)
            return updates.total_loss(lambda d: jax.lax.psum(d, "r")), updates

        (value, updates), grad = jax.value_and_grad(loss, has_aux=True)(w)
        gathered = jax.lax.all_gather(updates, "r").aggregate()
        return jax.lax.psum(value, "r"), jax.lax.psum(grad, "r"), gathered.compute_logs()["loss"]

    value, grad, logged = jax.vmap(replica, in_axes=(None, 0, 0, 0), axis_name="r")(jnp.asarray(W), *batch)

    def bare(w):
        square = jnp.sum(WEIGHT * (INPUTS @ w - TARGET) ** 2) / jnp.sum(WEIGHT)
        return square + 0.1 * jnp.sum(w**2)

    expected = jax.value_and_grad(bare)(jnp.asarray(W))
    np.testing.assert_allclose(value, np.full(3, expected[0]), rtol=1e-5)
    np.testing.assert_allclose(logged, np.full(3, expected[0]), rtol=1e-5)
    np.testing.assert_allclose(grad[0], expected[1], rtol=1e-4)


@UNWEIGHTED
def test_aggregate_equals_merge():
    cuts = [slice(0, 5), slice(5, 6), slice(6, 12)]
    updates = [everything().batch_updates(**kwargs_of(jnp.asarray(W), rows)) for rows in cuts]
    merged = everything().merge(updates[0]).merge(updates[1]).merge(updates[2])
    aggregated = jax.tree.map(lambda *x: jnp.stack(x), *updates).aggregate()
    assert structure(aggregated) == structure(merged)
    for name, value in merged.compute_logs().items():
        np.testing.assert_allclose(aggregated.compute_logs()[name], value, rtol=1e-6)


def test_no_examples_at_all():
    state = LossesAndMetrics([MeanSquaredError(), half], MSE())
    zero = jnp.zeros(4)
    value, grad = jax.value_and_grad(
        lambda p: state.batch_updates(target=zero, preds=p, sample_weight=zero, mask=zero > 0, examples=0).total_loss()
    )(jnp.ones(4))
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)
    assert all(np.isnan(value) for value in state.losses.compute().values())  # 0 would be the best of all losses
    assert set(map(float, state.metrics.compute_logs().values())) == {0.0}


@pytest.mark.parametrize(
    ("losses", "metrics", "names"),
    [
        (MeanSquaredError(), None, ["loss", "mean_squared_error"]),
        (None, Accuracy(), ["accuracy"]),
        (None, None, []),
        ([], {}, []),
        ([half, half], half, ["loss", "half", "half_1", "half_2"]),
        (MeanSquaredError(name="loss"), None, ["loss", "loss_1"]),
        ({"a": half, "b": [half, L2()]}, {"a": half}, ["loss", "a", "b/half", "b/l2", "a_1"]),
        ((half, L2()), (half, Mean()), ["loss", "half", "l2", "half_1", "mean"]),
        (optax.squared_error, optax.l2_loss, ["loss", "squared_error", "l2_loss"]),
        (None, MeanSquaredError(), ["mean_squared_error"]),
        (Losses(half), Metrics(half), ["loss", "half", "half_1"]),
    ],
)
def test_names_and_order(losses, metrics, names):
    state = LossesAndMetrics(losses, metrics)
    assert list(state.compute_logs()) == names
    assert list(state.compute()) == names


class Two(Metric):
    total: jax.Array = field(default_factory=lambda: jnp.zeros(()))

    def update(self, preds, sample_weight=None):
        return self.replace(total=self.total + preds.sum())

    def compute(self):
        return {"once": self.total, "twice": 2 * self.total}


def test_values_that_are_not_scalars():
    state = LossesAndMetrics(None, [Two(), ConfusionMatrix(2)])
    state = state.update(target=jnp.array([0, 1]), preds=jnp.array([1, 1]))
    logs = state.compute_logs()
    assert list(logs) == ["two/once", "two/twice", "confusion_matrix"]
    assert (logs["two/once"], logs["two/twice"], logs["confusion_matrix"].shape) == (2.0, 4.0, (2, 2))
    assert list(state.compute()) == ["two", "confusion_matrix"]


def test_a_mask_without_weights_serves_as_weights():
    mask = jnp.asarray(np.arange(N) < 7)
    batch = {"target": TARGET, "preds": INPUTS @ W}
    state = LossesAndMetrics(MeanSquaredError(), [MSE(), half])
    masked = state.batch_updates(**batch, mask=mask, examples=7).compute_logs()
    real = state.batch_updates(**{k: v[:7] for k, v in batch.items()}, examples=7).compute_logs()
    for name, value in real.items():
        np.testing.assert_allclose(masked[name], value, rtol=1e-6)


# Values that the module computes


def test_with_aux():
    state = LossesAndMetrics(half).with_aux(["a"], ["m"])
    assert structure(state.with_aux(["a"], ["m"])) == structure(state)
    assert structure(state.with_aux()) == structure(state)
    state = state.update(target=TARGET, preds=TARGET, aux_losses={"a": 2.0}, aux_metrics={"m": 3.0}, examples=2)
    more = state.with_aux(["b", "a"], ["n"])
    logs = more.compute_logs()
    assert {k: float(v) for k, v in logs.items()} == {
        "loss": 2.0,
        "half": 0.0,
        "a": 2.0,
        "b": 0.0,
        "m": 3.0,
        "n": 0.0,
    }
    assert structure(LossesAndMetrics(half).with_aux()) == structure(LossesAndMetrics(half))


def test_aux_values_are_means_over_examples():
    state = LossesAndMetrics().with_aux(["kl"], ["norm"])
    for value, examples in ((1.0, 3), (5.0, 1)):
        state = state.update(aux_losses={"kl": value}, aux_metrics={"norm": 10 * value}, examples=examples)
    assert {k: float(v) for k, v in state.compute_logs().items()} == {"loss": 2.0, "kl": 2.0, "norm": 20.0}
    state = state.update(examples=100)  # a step that sows nothing
    assert state.compute_logs()["kl"] == 2.0


def test_aux_metrics_that_are_metrics():
    labels, logits = jnp.array([0, 1, 1]), jnp.eye(2)[jnp.array([0, 1, 0])]
    updates = Accuracy().batch_updates(target=labels, preds=logits)
    state = LossesAndMetrics().with_aux(metrics={"acc": updates, "norm": 1.0})
    assert state.compute_logs()["acc"] == 0.0
    state = state.update(aux_metrics={"acc": updates, "norm": 2.0})
    state = state.update(
        aux_metrics={"acc": Accuracy().batch_updates(target=labels[:1], preds=logits[:1]), "norm": 2.0}
    )
    np.testing.assert_allclose(state.compute_logs()["acc"], 0.75)


def test_stand_alone_aux():
    assert AuxLosses(["a"]).update(aux_values={"a": 3.0}, mask=jnp.array([True, False, True])).total_loss() == 3.0
    assert AuxMetrics(["a"]).update(aux_values={"a": 3.0}).compute() == {"a": 3.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: LossesAndMetrics().update(aux_losses={"kl": 1.0}), r"aux_losses \['kl'\], which have no accum"),
        (lambda s: s.update(aux_losses={"other": 1.0}), r"loss values \['other'\], which have no.*\['kl'\]"),
        (lambda s: s.update(aux_metrics={"other": 1.0}), r"metric values \['other'\]"),
        (lambda s: s.update(aux_losses={"kl": jnp.ones(2)}), r"'kl' that the module produced has shape \(2,\)"),
        (lambda s: s.update(aux_metrics={"norm": jnp.ones(2)}), "must be a scalar"),
        (
            lambda s: s.merge(s.with_aux(["more"])),
            r"cannot merge: the aux_losses are \['kl'\] here and \['kl', 'more'\]",
        ),
        (lambda s: LossesAndMetrics(half).merge(LossesAndMetrics()), "cannot merge: the losses"),
        (lambda s: LossesAndMetrics(MeanSquaredError(reduction="none")), "Reduction.NONE"),
        (lambda s: LossesAndMetrics(None, MeanSquaredError(reduction="none")), "Reduction.NONE"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(LossesAndMetrics().with_aux(["kl"], ["norm"]))


@pytest.mark.parametrize(
    ("losses", "metrics", "message"),
    [
        (Accuracy(), None, "Accuracy is a metric, not a loss: pass it under `metrics`"),
        (MeanSquaredError, None, r"write MeanSquaredError\(\.\.\.\)"),
        ([half, 3], None, "3 cannot be used as a loss"),
        (None, [None], "None cannot be used as a metric"),
    ],
)
def test_objects_that_are_not_losses_or_metrics(losses, metrics, message):
    with pytest.raises(TypeError, match=message):
        LossesAndMetrics(losses, metrics)


def test_missing_arguments_name_the_loss():
    with pytest.raises(TypeError, match=r"the metric 'accuracy' needs 'target', .*there is only 'preds'"):
        LossesAndMetrics(None, Accuracy()).batch_updates(preds=jnp.ones((2, 3)), target=None)


# Checks


def test_check_runs_every_check():
    labels, logits = np.array([0, 5]), np.zeros((2, 3), "f4")
    for losses, metrics in ((CrossEntropy(), None), (None, CrossEntropy()), (None, ConfusionMatrix(3))):
        state = LossesAndMetrics(losses, metrics)
        state.check(target=labels % 3, preds=logits)
        with pytest.raises(ValueError, match="5"):
            state.check(target=labels, preds=logits)
    LossesAndMetrics(half, MSE()).check(target=labels, preds=labels)


def test_check_leaves_out_rows_of_weight_zero():
    labels, logits = np.array([-1, 0, 1]), jax.ShapeDtypeStruct((3, 3), jnp.float32)
    state = LossesAndMetrics(CrossEntropy(), [Accuracy(), ConfusionMatrix(3), AUC().rename_arguments(preds="inputs")])
    state.check(target=labels, preds=logits, sample_weight=np.array([0.0, 1.0, 2.0]))
    state.check(target=labels, preds=logits, sample_weight=np.zeros(3))
    with pytest.raises(ValueError, match="-1"):
        state.check(target=labels, preds=logits, sample_weight=np.ones(3))


def test_check_leaves_out_tokens_and_tasks_of_weight_zero():
    labels, logits = np.array([[0, 2], [-1, 7]]), jax.ShapeDtypeStruct((2, 2, 3), jnp.float32)
    state = LossesAndMetrics(CrossEntropy(), ConfusionMatrix(3))
    for weight in (np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[1.0], [0.0]])):
        state.check(target=labels, preds=logits, sample_weight=weight)
    with pytest.raises(ValueError, match="contains 7"):
        state.check(target=labels, preds=logits, sample_weight=np.array([[0.0, 1.0], [0.0, 1.0]]))
    path = {"target": "a", "preds": 0, "sample_weight": "a"}
    state = LossesAndMetrics(CrossEntropy().index_into(**path), Accuracy(num_classes=3).index_into(**path))
    weights = {"a": np.array([1.0, 0.0]), "b": np.ones(2)}
    state.check(target={"a": labels}, preds=[logits], sample_weight=weights)
    with pytest.raises(ValueError, match="-1, 7"):
        state.check(target={"a": labels}, preds=[logits], sample_weight={"a": weights["b"]})
    with pytest.raises(ValueError, match=r"sample_weight contains -2"):
        state.check(target={"a": labels}, preds=[logits], sample_weight={**weights, "b": np.array([-2.0, 1.0])})


@pytest.mark.parametrize("weight", [[1.0, -0.5, 0.0], [[1.0], [0.0], [-0.5]]])
def test_check_refuses_negative_weights(weight):
    with pytest.raises(ValueError, match=r"sample_weight contains -0\.5: weights must be finite and not negative"):
        LossesAndMetrics(metrics=MSE()).check(target=np.zeros(3), preds=np.zeros(3), sample_weight=np.array(weight))


def test_check_without_values_of_predictions():
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    LossesAndMetrics(None, [AUC(), Accuracy()]).check(target=np.array([0, 1]), preds=shape)
    with pytest.raises(ValueError, match="are 0 or 1"):
        LossesAndMetrics(None, AUC()).check(target=np.array([0, 2]), preds=shape)
    LossesAndMetrics(None, Mean().index_into(values="a")).check(target=np.array([0]), preds=shape)


class WithArray(Loss):
    """A loss with an array of its own."""

    factors: jax.Array

    def call(self, target, preds):
        return self.factors[target] * preds


def test_arrays_of_a_loss_survive_aggregation():
    state = LossesAndMetrics(WithArray(jnp.array([1.0, 10.0])), WithArray(jnp.array([1.0, 10.0])))
    updates = [state.batch_updates(target=jnp.array([t]), preds=jnp.array([1.0])) for t in (0, 1)]
    aggregated = jax.tree.map(lambda *x: jnp.stack(x), *updates).aggregate()
    assert structure(aggregated) == structure(state)
    for merged in (state.merge(aggregated), state.merge(updates[0]).merge(updates[1])):
        assert {float(v) for v in merged.compute_logs().values()} == {5.5}
        np.testing.assert_array_equal(merged.losses.losses[0].factors, [1.0, 10.0])
        np.testing.assert_array_equal(merged.reset().losses.losses[0].factors, [1.0, 10.0])
        np.testing.assert_array_equal(merged.reset().metrics.metrics[0].loss.factors, [1.0, 10.0])


def test_the_interface_of_jax_metrics_before_0_2():
    state = LossesAndMetrics(
        losses=Losses([MeanSquaredError(), MeanSquaredError()]).slice(target="losses", preds="losses"),
        metrics=Metrics({"a": Accuracy(), "b": [Accuracy()]}).slice(target=("metrics", 0), preds=("metrics", 0)),
        aux_losses=AuxLosses(),
        aux_metrics=AuxMetrics(),
    ).init(aux_losses={"aux_loss": jnp.zeros(())}, aux_metrics={"aux_metric": jnp.zeros(())})
    target = {"losses": jnp.zeros((2, 4)), "metrics": [jnp.arange(10)]}
    preds = {"losses": jnp.ones((2, 4)), "metrics": [jnp.array([0, 1, 2, 3, 0, 5, 6, 7, 0, 9])]}
    values = ((1.0, 2.0), (3.0, 4.0))
    step = jax.jit(lambda state, loss, metric: state.loss_and_update(
        target=target, preds=preds, aux_losses={"aux_loss": loss}, aux_metrics={"aux_metric": metric}
    ))  # fmt: skip
    for loss, metric in values:
        total, state = step(state, loss, metric)
        assert total == 1.0 + 1.0 + loss
    computed = {name: round(value.item(), 6) for name, value in state.compute().items()}
    assert computed == {
        "loss": 4.0,
        "mean_squared_error": 1.0,
        "mean_squared_error_1": 1.0,
        "aux_loss": 2.0,
        "a": 0.8,
        "b/accuracy": 0.8,
        "aux_metric": 3.0,
    }
    assert Accuracy().init().update(target=jnp.arange(2), preds=jnp.arange(2)).compute() == 1.0
    assert AuxMetrics().init({"x": 0.0}).init().names == AuxLosses().init({"x": 0.0}).init().names == ("x",)


def test_a_collection_is_indexed_as_a_whole_and_keeps_its_names():
    given = LossesAndMetrics({"a": MeanSquaredError(), "b": L2(1.0)}, {"m": MSE()}).with_aux(["kl"])
    state = given.index_into(preds="heads").rename_arguments(target="inputs")
    assert (state.losses.names, state.metrics.names, state.aux_losses.names) == (("a", "b"), ("m",), ("kl",))
    arguments = {"inputs": jnp.zeros(2), "preds": {"heads": jnp.array([1.0, 3.0])}, "parameters": jnp.ones(3)}
    values = state.batch_updates(**arguments, aux_losses={"kl": 0.5}).compute()
    assert {name: value.item() for name, value in values.items()} == {
        "loss": 8.5,
        "a": 5.0,
        "b": 3.0,
        "m": 5.0,
        "kl": 0.5,
    }
    with pytest.raises(ValueError, match=r"no accumulator. Declare them with `init\(aux_losses"):
        LossesAndMetrics(aux_losses=AuxLosses()).update(aux_losses={"kl": 0.5})
