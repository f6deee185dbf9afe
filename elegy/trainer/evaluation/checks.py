"""Mistakes in the evaluations of a fit, found before the first step."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from elegy.callbacks import Callback, LambdaCallback, Monitor, TimeMonitor
from elegy.callbacks.monitors import StepMonitor
from elegy.callers import stacklevel_of_caller
from elegy.module import ElegyModule
from elegy.module.levels import level_of
from elegy.trainer.evaluation.evaluations import EvaluationPlan
from elegy.trainer.execution import ExecutionPlan
from elegy.trainer.population.stopping import MemberStopping
from elegy.trainer.run import Run


def check_owners(training: ExecutionPlan, evaluations: Sequence[EvaluationPlan]) -> None:
    """Checks that the training and the evaluations of a fit log different names.

    Raises:
        ValueError: if two values have the same name.
    """
    owners = dict.fromkeys(training.names or (), "the training")
    for one in evaluations:
        for name in sorted(one.names or ()):
            if name in owners:
                raise ValueError(
                    f"the evaluation {one.prefix!r} logs {name!r}, which {owners[name]} logs, too: give the data set "
                    "of validation_data another name."
                )
            owners[name] = f"the evaluation {one.prefix!r}"


def check_monitors(
    callbacks: Iterable[Callback], training: ExecutionPlan, evaluations: Sequence[EvaluationPlan]
) -> None:
    """Checks that the training or an evaluation logs the values that callbacks monitor.

    Raises:
        ValueError: if a monitored name is not logged.
    """
    if any(_may_add(callback) for callback in callbacks):
        return
    known = {one.prefix: one.names for one in evaluations}
    trained = None if any(isinstance(one, (StepMonitor, TimeMonitor)) for one in callbacks) else training.names
    for callback in (one.rule if isinstance(one, MemberStopping) else one for one in callbacks):
        monitor = getattr(callback, "monitor", None)
        if not isinstance(monitor, Monitor):
            continue
        prefix = max((prefix for prefix in known if monitor.name.startswith(prefix)), key=len, default=None)
        of_training = prefix is None and not monitor.name.startswith("val_")
        names = trained if of_training else known.get(prefix or "")
        if names is not None and monitor.name not in names:
            raise ValueError(
                f"the monitored log {monitor.name!r} of {type(callback).__name__} will not exist: "
                f"{'the training' if of_training else 'its evaluation'} logs {', '.join(sorted(names))}."
            )


def _may_add(callback: Callback) -> bool:
    """True if a callback of another package may add values to the logs."""
    own = type(callback).__module__.startswith("elegy.") and not isinstance(callback, LambdaCallback)
    return not own and not callback.reads_logs


def warn_of_unused(module: Any, training: ExecutionPlan, evaluations: Sequence[EvaluationPlan]) -> None:
    """Warns of losses and metrics that a module with its own steps ignores.

    The traced steps do not read or change their sums, and the module's class neither names them nor calls `super()` or
    `compute_loss`: without validation, its test step is not traced.

    Args:
        module: the state or its structure.
        training: the training.
        evaluations: the evaluations of its validation data.
    """
    cls, used = type(module), [training.used, *(one.plan.used for one in evaluations)]
    if not jax.tree.leaves(module.losses_and_metrics) or level_of(cls, "test") == "high":
        return
    unread = all(fields is not None and "losses_and_metrics" not in fields() for fields in used)
    readers = ["losses_and_metrics", "super()"]
    readers += ["compute_loss"] if cls.compute_loss is ElegyModule.compute_loss else []
    if unread and not _may_name(cls, *readers):
        warnings.warn(
            f"the loss and the metrics of the trainer are not used: {cls.__name__} has its own steps, and they do not "
            "read `self.losses_and_metrics`. Compute them, `loss, module = self.compute_loss(preds=..., target=...)`, "
            "or leave these arguments out, and log what you compute yourself, `self.log(name, value)`.",
            stacklevel=stacklevel_of_caller(),
        )


def _may_name(cls: type, *names: str) -> bool:
    """True if the source of a user's class has one of the names, or is not known."""
    own = [owner for owner in cls.__mro__ if owner not in ElegyModule.__mro__]
    try:
        return any(name in inspect.getsource(owner) for owner in own for name in names)
    except (OSError, TypeError):
        return True


def warn_of_long_interval(run: Run, evaluation: EvaluationPlan) -> None:
    """Warns of an evaluation whose interval is longer than the run, which may be one of several calls of `fit`."""
    every, last = evaluation.every, run.last_count(evaluation.every.unit)
    if last is None or getattr(every, every.unit) <= last:
        return
    warnings.warn(
        f"the evaluation {evaluation.prefix!r} will not run: its interval is {every!r}, and the run ends at {last:g} "
        f"{every.unit}. Give a shorter `validation_freq` or `Evaluation(every=...)`, or train longer.",
        stacklevel=stacklevel_of_caller(),
    )
