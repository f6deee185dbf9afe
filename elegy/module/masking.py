"""Whether a short batch may be filled up with rows of weight 0."""

from __future__ import annotations

from typing import Any, Literal

import jax

from elegy.data.batch import rows, unpack
from elegy.module import high_level
from elegy.module.levels import level_of
from elegy.types import Batch


def can_mask(module: Any, phase: Literal["train", "test", "pred"], batch: Batch) -> bool:
    """Whether padding rows leave no trace in what a phase computes.

    They do not where everything can be masked: at the high level, with losses and metrics that keep one value
    an example, no batch statistics in training, and no losses or metrics that the module itself reports. In
    prediction every output must have one row an example, so that the padding can be cut off.

    Args:
        module: the state, or its `jax.ShapeDtypeStruct`s.
        phase: the phase.
        batch: a batch of arrays or of `jax.ShapeDtypeStruct`s; for prediction, inputs.
    """
    if level_of(type(module), phase) != "high" or not high_level.runs_apply(module):
        return False
    training = phase == "train"
    inputs, target, _ = (batch, None, None) if phase == "pred" else unpack(batch)

    def outputs(module: Any, inputs: Any) -> Any:
        return high_level.apply(module, jax.random.key(0), inputs, training)

    preds, state = jax.eval_shape(outputs, module, inputs)
    count = rows(batch)
    if phase == "pred":
        return all(leaf.ndim > 0 and leaf.shape[0] == count for leaf in jax.tree.leaves(preds))
    if state._logs.pending or (training and jax.tree.leaves(state.get_batch_stats())):
        return False
    if state.losses_and_metrics is None:
        return True
    return state.losses_and_metrics.maskable(
        count, inputs=inputs, target=target, preds=preds, parameters=state.get_params(), batch_stats=None
    )
