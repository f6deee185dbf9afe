"""Whether a short batch may be filled up with rows of weight 0."""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np

from elegy.data.batch import rows, unpack
from elegy.data.mixing import mixes_rows
from elegy.flat import eval_shape
from elegy.losses.numbers import default_float
from elegy.module import high_level
from elegy.module.levels import level_of
from elegy.module.logs import LogBook
from elegy.types import Batch


def can_mask(module: Any, phase: Literal["train", "test", "pred"], batch: Batch) -> bool:
    """Whether padding rows leave no trace in what a phase computes.

    They do not where everything can be masked: at the high level, with losses and metrics that keep one value
    an example, computed from that example alone, and where the call of the module leaves its state as it is (batch
    statistics, running means and counts would see the padding) and reports no losses or metrics of its own. In
    prediction every output must have one row an example, so that the padding can be cut off.

    Args:
        module: the state, or its `jax.ShapeDtypeStruct`s.
        phase: the phase.
        batch: a batch of arrays or of `jax.ShapeDtypeStruct`s; for prediction, inputs.
    """
    if level_of(type(module), phase) != "high" or not high_level.runs_apply(module):
        return False
    count = rows(batch)
    training = phase == "train"
    inputs, target, sample_weight = (batch, None, None) if phase == "pred" else unpack(batch)
    moved: list[bool] = []

    def outputs(module: Any, inputs: Any) -> Any:
        preds, state = high_level.apply(module, jax.random.key(0), inputs, training)
        moved.append(_moved(module, state))
        return preds, state

    preds, state = eval_shape(outputs, module, inputs)
    if any(moved) or mixes_rows(lambda module, inputs: outputs(module, inputs)[0], module, inputs, count):
        return False
    if phase == "pred":
        return all(leaf.ndim > 0 and leaf.shape[0] == count for leaf in jax.tree.leaves(preds))
    if state._logs.pending or (training and jax.tree.leaves(state.get_batch_stats())):
        return False
    if state.losses_and_metrics is None:
        return True
    mask = jax.ShapeDtypeStruct((count,), np.dtype(bool))
    return state.losses_and_metrics.maskable(
        count,
        inputs=inputs,
        target=target,
        preds=preds,
        sample_weight=eval_shape(high_level.masked_weight, sample_weight, mask),
        mask=mask,
        examples=jax.ShapeDtypeStruct((), default_float()),
        parameters=state.get_params(),
        batch_stats=state.get_batch_stats(),
    )


def _moved(before: Any, after: Any) -> bool:
    """Whether a traced call changed a leaf of the state, apart from what it reported."""
    old, new = (jax.tree.leaves(state.replace(_logs=LogBook())) for state in (before, after))
    return len(old) != len(new) or any(a is not b for a, b in zip(old, new, strict=True))
