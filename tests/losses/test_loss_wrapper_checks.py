"""The early look at labels sees through wrappers, and leaves alone what it cannot see."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from elegy.losses import CrossEntropy, FunctionLoss, MeanSquaredError
from elegy.metrics import AUC, Accuracy, ConfusionMatrix, LossesAndMetrics, Mean

TARGET, PREDS = {"label": np.array([0, 7])}, {"logits": np.zeros((2, 3), np.float32)}


def test_labels_out_of_range_are_found_inside_of_nested_arguments():
    checked = LossesAndMetrics(losses=CrossEntropy().index_into(target="label", preds="logits"))
    with pytest.raises(ValueError, match="contains 7"):
        checked.check(target=TARGET, preds=PREDS)


@pytest.mark.parametrize(
    "loss",
    [
        MeanSquaredError().rename_arguments(target="inputs"),
        MeanSquaredError().index_into(preds="logits").rename_arguments(target="inputs"),
        CrossEntropy().index_into(inputs=0),
    ],
    ids=["renamed", "both", "indexed"],
)
def test_a_loss_that_needs_more_than_labels_is_left_to_the_step(loss):
    LossesAndMetrics(losses=loss).check(target=TARGET, preds=PREDS)


def test_a_metric_that_needs_more_than_labels_is_left_to_the_step():
    metrics = [Mean().rename_arguments(values="inputs"), Accuracy().index_into(inputs="label")]
    LossesAndMetrics(metrics=metrics).check(target=TARGET, preds=PREDS)


class Found:
    """Predictions that are an object, as a distribution: `shape` is a method, and there is no dtype."""

    def __init__(self, logits):
        self.logits = logits

    def shape(self):
        return self.logits.shape[:1]


class FromOne(CrossEntropy):
    def call(self, target, preds):
        return super().call(target - 1, preds.logits)


class HitsFromOne(Accuracy):
    def update(self, target, preds, sample_weight=None):
        return super().update(target=target - 1, preds=preds.logits, sample_weight=sample_weight)


def test_a_check_of_a_built_in_class_does_not_apply_to_a_subclass_that_computes_something_else():
    target, logits = np.array([1, 2, 3]), np.array([[5.0, 0, 0], [0, 5, 0], [0, 0, 5]], "f4")
    state = LossesAndMetrics(FromOne(), [HitsFromOne(), FromOne(name="shown")])
    state.check(target, Found(logits))
    with pytest.raises(ValueError, match="the target contains 3, but the last axis of preds has 3 classes"):
        LossesAndMetrics(CrossEntropy()).check(target, logits)

    class Checked(FromOne):
        def target_check(self, target, preds):
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        LossesAndMetrics(Checked()).check(target, Found(logits))


@pytest.mark.parametrize(
    "thing", [CrossEntropy(), Accuracy(num_classes=3), ConfusionMatrix(3), AUC()], ids=lambda t: t.name
)
def test_checks_of_arrays_stand_aside_for_anything_else(thing):
    for target, preds in ((np.zeros(3, int), Found(np.zeros((3, 2)))), ({"a": np.zeros(3)}, np.zeros((3, 3), "f4"))):
        thing.target_check(target, preds)


def test_weights_with_an_object_that_is_not_an_array():
    loss = FunctionLoss(lambda target, preds: (target - preds.logits) ** 2)
    value = loss(target=jnp.zeros(2), preds=Found(jnp.array([1.0, 3.0])), sample_weight=jnp.array([3.0, 1.0]))
    assert value == 3.0
    with pytest.raises(TypeError, match=r"returned a Found\. A loss or metric function returns one array"):
        FunctionLoss(lambda target, preds: preds)(target=jnp.zeros(2), preds=Found(1.0))
