"""A pass over data without training: how `evaluate` and `predict` prepare theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from elegy.callbacks import Callback
from elegy.data.sources import ArraySource, IterableSource
from elegy.integers import positive_int_or_none
from elegy.module.averaging import Weights, check_weights
from elegy.trainer.execution import ExecutionPlan, PhaseRequest, fuse_with
from elegy.trainer.listeners import Listeners
from elegy.trainer.session import Session

if TYPE_CHECKING:
    from elegy.trainer.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class PassOptions:
    """The arguments of a pass beside its data, as for `Trainer.evaluate`.

    Args:
        batch_size: examples a step.
        steps: the largest number of batches.
        callbacks: those of the call.
        verbose: what is printed.
        weights: which parameters to use.
    """

    batch_size: int | None
    steps: int | None
    callbacks: Sequence[Callback] | None
    verbose: Literal[0, 1, 2]
    weights: Weights


def plan_pass(
    trainer: Trainer[Any],
    session: Session,
    phase: Literal["test", "pred"],
    source: ArraySource | IterableSource,
    options: PassOptions,
) -> tuple[ExecutionPlan, Listeners]:
    """Plans a pass.

    Args:
        trainer: the trainer.
        session: its session.
        phase: `"test"` to evaluate, `"pred"` to predict.
        source: the data.
        options: the other arguments.

    Raises:
        ValueError: if there are no such weights, or an argument is out of range.
        TypeError: if an argument has the wrong type.
    """
    check_weights(session.buffer.form, options.weights)
    listeners = Listeners(trainer, session, options.callbacks, options.verbose)
    what, hooks = ("evaluate", "test") if phase == "test" else ("predict", "predict")
    request = PhaseRequest.of(
        session.buffer,
        phase,
        source,
        what=what,
        batch_size=options.batch_size,
        limit=positive_int_or_none("steps", options.steps),
        fuse=fuse_with(listeners.callbacks, "auto", hooks),
        copies=session.copies,
    )
    (plan,) = session.prepare(request, once=True)
    return plan, listeners
