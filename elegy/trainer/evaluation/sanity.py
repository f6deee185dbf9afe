"""A few validation steps before training, which find a fault of the validation before hours of training."""

from __future__ import annotations

from collections.abc import Sequence

from elegy.data import IterableSource
from elegy.engine.measures import with_measures
from elegy.loading import Part
from elegy.trainer.evaluation.evaluations import EvaluationPlan
from elegy.trainer.session import Session
from elegy.walltime import measured


def sanity_check(session: Session, evaluations: Sequence[EvaluationPlan], steps: int) -> None:
    """Runs the first batches of each evaluation on a copy of the state; its values are dropped, no hook is called.

    Data that can be read only once is left out.

    Args:
        session: the session.
        evaluations: the evaluations of a fit.
        steps: the largest number of batches of each.

    Raises:
        Exception: what the data or the step raises, with a note that names the evaluation.
    """
    executor = session.executor
    for one in evaluations:
        loader = one.plan.loader
        if isinstance(loader.source, IterableSource) and loader.source.one_shot:
            continue
        try:
            with measured("evaluation"):
                buffer = with_measures(session.with_weights(session.buffer.fork(), one.weights), one.plan.measures)
                executor.reset(buffer, "test")
                for chunk in one.plan.chunks(buffer, Part(limit=steps)):
                    dict(executor.run("test", buffer, chunk, session.epoch).logs(chunk.count - 1))  # waits for errors
        except Exception as error:
            error.add_note(
                f"It came up in the sanity check of the validation ({one.prefix}...) before training; "
                "`fit(sanity_check=0)` leaves the check out."
            )
            raise
        loader.end()
