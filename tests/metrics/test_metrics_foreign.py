"""Metrics of other libraries in `LossesAndMetrics`, against the libraries themselves on all of the data."""

import itertools
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import jax_metrics as jm
import metrax
import numpy as np
import pytest
from clu import metrics as clu
from flax import nnx

import elegy as eg
from elegy.losses.function import as_loss
from elegy.metrics import LossesAndMetrics
from elegy.metrics.foreign import adapt

RNG = np.random.default_rng(0)
N, C = 20, 4
LABELS = RNG.integers(0, C, size=N).astype("int32")
LOGITS = RNG.normal(size=(N, C)).astype("f4")
PREDS, TARGET = RNG.normal(size=(2, N)).astype("f4")
CUTS = (0, 7, 8, 20)


def structure(state):
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)], jax.tree.structure(state)


def over_batches(metrics, **arrays):
    """The logs after a jitted loop; checks that merging replicas gives the same."""
    state = LossesAndMetrics(None, metrics)
    before = structure(state)
    batches = [{k: jnp.asarray(v[a:b]) for k, v in arrays.items()} for a, b in itertools.pairwise(CUTS)]
    step = jax.jit(lambda state, batch: (state.batch_updates(**batch), state.merge(state.batch_updates(**batch))))
    updates = []
    for batch in batches:
        update, state = step(state, batch)
        updates.append(update)
        assert structure(state) == before
    aggregated = jax.tree.map(lambda *x: jnp.stack(x), *updates).aggregate()
    assert structure(aggregated) == before
    assert structure(state.reset()) == before
    for name, value in state.compute_logs().items():
        np.testing.assert_allclose(aggregated.compute_logs()[name], value, rtol=1e-5)
    return state.compute_logs()


def test_clu_classes_and_collections():
    Both = clu.Collection.create(accuracy=clu.Accuracy, height=clu.Average.from_output("preds"))
    arrays = {"target": LABELS, "preds": LOGITS}
    expected = Both.single_from_model_output(logits=LOGITS, labels=LABELS, preds=LOGITS).compute()
    logs = over_batches(clu.Accuracy, **arrays)
    assert list(logs) == ["accuracy"]
    np.testing.assert_allclose(logs["accuracy"], expected["accuracy"], rtol=1e-6)
    logs = over_batches([Both, clu.Accuracy], **arrays)
    assert list(logs) == ["accuracy", "height", "accuracy_1"]
    np.testing.assert_allclose(logs["height"], expected["height"], rtol=1e-5)
    assert list(over_batches({"mine": Both.empty()}, **arrays)) == ["mine/accuracy", "mine/height"]


def test_clu_leaves_out_rows_of_weight_zero():
    weight = (np.arange(N) % 3 > 0).astype("f4")
    logs = over_batches(clu.Accuracy, target=LABELS, preds=LOGITS, sample_weight=weight)
    np.testing.assert_allclose(logs["accuracy"], (LOGITS.argmax(-1) == LABELS)[weight > 0].mean(), rtol=1e-6)


def test_clu_labels_of_any_integer_type():
    logs = over_batches(clu.Accuracy, target=LABELS.astype("uint8"), preds=LOGITS)
    np.testing.assert_allclose(logs["accuracy"], (LOGITS.argmax(-1) == LABELS).mean(), rtol=1e-6)


def test_weighted_metrics_of_the_clu_protocol():
    """What metrax does: `sample_weights` by name, no `**kwargs`, fractional counts."""

    @flax.struct.dataclass
    class MSE(clu.Average):
        @classmethod
        def from_model_output(cls, predictions, labels, sample_weights=None):
            weight = jnp.ones_like(labels) if sample_weights is None else sample_weights
            return cls(total=jnp.sum(weight * (predictions - labels) ** 2), count=jnp.sum(weight))

    weight = RNG.uniform(size=N).astype("f4")
    logs = over_batches(MSE, target=TARGET, preds=PREDS, sample_weight=weight)
    np.testing.assert_allclose(logs["mse"], np.average((PREDS - TARGET) ** 2, weights=weight), rtol=1e-5)
    assert adapt(MSE).maskable(N)
    assert not adapt(clu.Accuracy).maskable(N)


def test_metrax():
    weight = RNG.uniform(size=N).astype("f4")
    logs = over_batches([metrax.MSE, metrax.RMSE], target=TARGET, preds=PREDS, sample_weight=weight)
    mse = np.average((PREDS - TARGET) ** 2, weights=weight)
    np.testing.assert_allclose([logs["mse"], logs["rmse"]], [mse, mse**0.5], rtol=1e-5)
    with pytest.raises(TypeError, match="changes the structure of its state"):
        over_batches(metrax.AUCROC, target=LABELS % 2, preds=jax.nn.sigmoid(PREDS))


def test_clu_states_without_a_fixed_structure():
    collecting = clu.CollectingMetric.from_outputs(("preds",))
    with pytest.raises(TypeError, match=r"changes the structure of its state.*elegy.metrics.AUC"):
        LossesAndMetrics(None, collecting).batch_updates(preds=jnp.ones(3))


def test_nnx():
    metric = nnx.MultiMetric(
        accuracy=nnx.metrics.Accuracy(), mean=nnx.metrics.Average("inputs"), spread=nnx.metrics.Welford("inputs")
    )
    arrays = {"target": LABELS, "preds": LOGITS, "inputs": 10 + PREDS}
    logs = over_batches(metric, **arrays)
    assert list(logs) == [
        "accuracy",
        "mean",
        "spread/mean",
        "spread/standard_error_of_mean",
        "spread/standard_deviation",
    ]
    reference = nnx.clone(metric)
    reference.update(logits=jnp.asarray(LOGITS), labels=jnp.asarray(LABELS), inputs=jnp.asarray(10 + PREDS))
    expected = reference.compute()
    np.testing.assert_allclose(logs["accuracy"], expected["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(logs["mean"], (10 + PREDS).mean(), rtol=1e-6)
    np.testing.assert_allclose(logs["spread/mean"], (10 + PREDS).mean(), rtol=1e-6)
    np.testing.assert_allclose(logs["spread/standard_deviation"], PREDS.std(), rtol=1e-4)
    assert metric.accuracy.count[...] == 0  # the object that was given is as it was
    assert next(iter(over_batches({"mine": metric}, **arrays))) == "mine/accuracy"
    logs = over_batches([nnx.metrics.Accuracy(), nnx.metrics.Accuracy()], **arrays)
    assert list(logs) == ["accuracy", "accuracy_1"]


def test_nnx_masks():
    mask = np.arange(N) % 3 > 0
    logs = over_batches(nnx.metrics.Accuracy(), target=LABELS, preds=LOGITS, mask=mask)
    np.testing.assert_allclose(logs["accuracy"], (LOGITS.argmax(-1) == LABELS)[mask].mean(), rtol=1e-6)
    assert adapt(nnx.metrics.Accuracy()).maskable(N)
    assert not adapt(nnx.metrics.Welford()).maskable(N)


def test_nnx_states_that_do_not_say_how_they_merge():
    class Largest(nnx.Metric):
        def __init__(self):
            self.value = nnx.metrics.MetricState(jnp.zeros(()))

    for metric in (Largest(), nnx.MultiMetric(largest=Largest())):
        with pytest.raises(TypeError, match="the nnx metric Largest has no way to merge its states"):
            LossesAndMetrics(None, metric)


def test_jax_metrics():
    arrays = {"target": LABELS, "preds": LOGITS, "values": PREDS}
    logs = over_batches([jm.metrics.Accuracy(num_classes=C), jm.metrics.Mean()], **arrays)
    assert list(logs) == ["accuracy", "mean"]
    np.testing.assert_allclose(logs["accuracy"], (LOGITS.argmax(-1) == LABELS).mean(), rtol=1e-6)
    np.testing.assert_allclose(logs["mean"], PREDS.mean(), rtol=1e-5)
    both = jm.Metrics({"a": jm.metrics.Accuracy(num_classes=C), "m": jm.metrics.Mean()})
    assert list(over_batches(both, **arrays)) == ["a", "m"]
    assert adapt(jm.metrics.Mean()).maskable(N)
    loss = as_loss(jm.losses.Crossentropy())
    expected = -np.asarray(jax.nn.log_softmax(LOGITS))[np.arange(N), LABELS].mean()
    np.testing.assert_allclose(loss(target=LABELS, preds=jnp.asarray(LOGITS)), expected, rtol=1e-5)


def test_nothing_is_imported_to_find_out():
    code = """
import sys
from elegy.metrics.foreign import adapt
from elegy.metrics import LossesAndMetrics
LossesAndMetrics(None, lambda target, preds: preds)
assert adapt(object()) is None
found = [m for m in ("clu", "flax", "metrax", "jax_metrics") if m in sys.modules]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jax_metrics_losses():
    """`jax_metrics.Losses` resets by `jax.tree_map`, which JAX has removed; the adapter does it."""
    losses = jm.Losses({"a": jm.losses.MeanSquaredError(), "b": jm.losses.MeanAbsoluteError()})
    logs = over_batches(losses, target=TARGET, preds=PREDS)
    assert list(logs) == ["a", "b"]
    # Its losses are means of the batches' values, each batch with weight 1.
    cuts = [slice(*pair) for pair in itertools.pairwise(CUTS)]
    np.testing.assert_allclose(logs["a"], np.mean([np.square(PREDS[c] - TARGET[c]).mean() for c in cuts]), rtol=1e-5)
    np.testing.assert_allclose(logs["b"], np.mean([np.abs(PREDS[c] - TARGET[c]).mean() for c in cuts]), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["jit", "data_parallel"])
def test_metrics_of_four_libraries_in_a_trainer(strategy):
    """Over 8 devices and a short batch: each equals the library's own value for all of the data at once."""
    x, y = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    accuracies = [clu.Accuracy, nnx.metrics.Accuracy(), jm.metrics.Accuracy(num_classes=C)]
    trainer = eg.Trainer(
        (lambda key, x: {}, lambda params, x: {"scores": x, "classes": x.argmax(-1)}),
        metrics={"scores": accuracies, "classes": metrax.Accuracy},
        strategy=strategy,
    )
    found = trainer.evaluate(LOGITS, LABELS, batch_size=8, verbose=0)
    theirs = nnx.metrics.Accuracy()
    theirs.update(logits=x, labels=y)
    expected = {
        "scores_accuracy": clu.Accuracy.from_model_output(logits=x, labels=y).compute(),
        "scores_accuracy_1": theirs.compute(),
        "scores_accuracy_2": jm.metrics.Accuracy(num_classes=C).reset().update(target=y, preds=x).compute(),
        "classes_accuracy": metrax.Accuracy.from_model_output(predictions=x.argmax(-1), labels=y).compute(),
    }
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), [float(value) for value in expected.values()], rtol=1e-6)
