"""Mistakes in the evaluations of a fit, found before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from elegy.callbacks import Callback, LambdaCallback, Monitor, TimeMonitor
from elegy.callbacks.monitors import StepMonitor
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


def warn_of_long_interval(run: Run, evaluation: EvaluationPlan) -> None:
    """Warns of an evaluation whose interval is longer than the run, which may be one of several calls of `fit`."""
    every, last = evaluation.every, run.last_count(evaluation.every.unit)
    if last is None or getattr(every, every.unit) <= last:
        return
    warnings.warn(
        f"the evaluation {evaluation.prefix!r} will not run: its interval is {every!r}, and the run ends at {last:g} "
        f"{every.unit}. Give a shorter `validation_freq` or `Evaluation(every=...)`, or train longer.",
        stacklevel=5,
    )
