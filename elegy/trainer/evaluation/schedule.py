"""When the evaluations of a run are due."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from elegy.callbacks.interval import interval_ends
from elegy.trainer.evaluation.evaluations import EvaluationPlan


class EvaluationSchedule:
    """Knows which evaluations of a run are due.

    Steps and epochs are counted over the trainer's life, examples and seconds from the beginning of the run.

    Args:
        evaluations: the evaluations of the run.
        count: returns the present count of a unit: `"steps"`, `"examples"` or `"seconds"`.

    Attributes:
        evaluations: all of them.
        prefixes: the beginnings of the names of the values of each evaluation.
        acts_on_run: True if an evaluation is due inside of epochs.
    """

    def __init__(self, evaluations: Sequence[EvaluationPlan], count: Callable[[str], float]):
        self.evaluations, self._count = tuple(evaluations), count
        self._within = [one for one in evaluations if one.every.unit != "epochs"]
        self.acts_on_run = bool(self._within)
        self.prefixes = tuple(one.prefix for one in evaluations)
        self._places: dict[str, Any] | None = None
        self._seen = self._counts()

    def _counts(self) -> dict[str, float]:
        return {one.prefix: self._count(one.every.unit) for one in self._within}

    def due(self) -> list[EvaluationPlan]:
        """Returns the evaluations whose interval, other than epochs, has ended since they ran."""
        return [one for one in self._within if one.every.due(self._seen[one.prefix], self._count(one.every.unit))]

    def due_at_end(self, epoch: int) -> list[EvaluationPlan]:
        """Returns the evaluations that are due when an epoch ends.

        Args:
            epoch: the epoch's index.
        """
        due = {one.prefix for one in self.due()}
        due |= {
            one.prefix for one in self.evaluations if one.every.unit == "epochs" and one.every.due(epoch, epoch + 1)
        }
        return [one for one in self.evaluations if one.prefix in due]

    def begin(self) -> None:
        """Evaluations begin: until they are done, a checkpoint has the places of their data before them."""
        self._places = self.places()

    def done(self, evaluations: Sequence[EvaluationPlan]) -> None:
        """Evaluations are done, and will not be due again at these counts."""
        self._places = None
        ran = {one.prefix for one in evaluations}
        self._seen |= {one.prefix: self._count(one.every.unit) for one in self._within if one.prefix in ran}

    def execution_size(self, step: int, examples: int, sizes: Sequence[int]) -> int:
        """Returns how many of the next batches run in one execution, which ends where an evaluation is due.

        Args:
            step: training steps completed before the execution.
            examples: training examples seen by the run before it.
            sizes: the examples of each batch that the execution may hold.
        """
        ends = (min(interval_ends(one.every, step, examples, sizes), default=len(sizes)) for one in self._within)
        return min(min(ends, default=len(sizes)) + 1, len(sizes))

    # what a checkpoint has of them

    def places(self) -> dict[str, Any]:
        """The place of each evaluation's data, fit for JSON."""
        if self._places is not None:
            return self._places
        return {one.prefix: one.plan.loader.state(0, own=False) for one in self.evaluations}

    def load_places(self, places: Mapping[str, Any]) -> None:
        """Moves the data to `places`."""
        for one in self.evaluations:
            one.plan.loader.load_state(places.get(one.prefix))

    def state_dict(self) -> dict[str, float]:
        """Returns the counts at which evaluations inside of epochs ran last."""
        return dict(self._seen)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from the counts of a checkpoint; an evaluation that is not among them counts from now on."""
        self._places = None
        self._seen = {prefix: state.get(prefix, now) for prefix, now in self._counts().items()}
