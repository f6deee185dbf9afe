"""The early look at labels sees through wrappers, and leaves alone what it cannot see."""

from __future__ import annotations

import numpy as np
import pytest

from elegy.losses import CrossEntropy, MeanSquaredError
from elegy.metrics import Accuracy, LossesAndMetrics, Mean

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
