"""A pass over data without training: how `evaluate` and `predict` prepare theirs."""

from __future__ import annotations

from typing import Any, Literal

from elegy.data.sources import ArraySource, IterableSource
from elegy.integers import positive_int_or_none
from elegy.module.averaging import Weights, check_weights
from elegy.trainer.execution import ExecutionPlan, PhaseRequest, fuse_with
from elegy.trainer.listeners import Listeners
from elegy.trainer.session import Session


def plan_pass(
    session: Session,
    phase: Literal["test", "pred"],
    source: ArraySource | IterableSource,
    listeners: Listeners,
    batch_size: int | None,
    steps: Any,
    weights: Weights,
) -> ExecutionPlan:
    """Plans a pass.

    Args:
        session: the session of the trainer.
        phase: `"test"` to evaluate, `"pred"` to predict.
        source: the data.
        listeners: the callbacks of the call.
        batch_size: examples a step.
        steps: the largest number of batches.
        weights: which parameters to use.

    Raises:
        ValueError: if there are no such weights, or an argument is out of range.
        TypeError: if an argument has the wrong type.
    """
    check_weights(session.buffer.form, weights)
    what, hooks = ("evaluate", "test") if phase == "test" else ("predict", "predict")
    request = PhaseRequest.of(
        session.buffer,
        phase,
        source,
        what=what,
        batch_size=batch_size,
        limit=positive_int_or_none("steps", steps),
        fuse=fuse_with(listeners.callbacks, "auto", hooks),
        copies=session.copies,
    )
    (plan,) = session.prepare(request, once=True)
    return plan
