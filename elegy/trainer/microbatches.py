"""Into how many microbatches each training step cuts its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from elegy.integers import positive_int


class MicrobatchSchedule:
    """The number of microbatches by step. It is a constant of a compiled step, so executions end where it changes.

    Args:
        given: the number, or a function from the number of completed steps to it.

    Attributes:
        acts_on_run: True if the number may change.

    Raises:
        TypeError: if the number is not an integer.
        ValueError: if it is below 1.

    Example:
        >>> schedule = MicrobatchSchedule(lambda step: 1 if step < 3 else 4)
        >>> schedule.at(2), schedule.at(3), schedule.execution_size(1, 0, [8, 8, 8])
        (1, 4, 2)
    """

    def __init__(self, given: int | Callable[[int], int]):
        self.given = given if callable(given) else positive_int("accumulate", given)
        self.acts_on_run = callable(given)

    def at(self, step: int) -> int:
        """Returns the number of microbatches of the step after `step` completed ones."""
        if not callable(self.given):
            return self.given
        return positive_int(f"what accumulate returns for step {step}", self.given(step))

    def execution_size(self, step: int, examples: int, sizes: Sequence[int]) -> int:
        """Returns how many of the next steps have the same number.

        Args:
            step: the completed steps before the execution.
            examples: the examples before it.
            sizes: the examples of each batch that the execution may contain.
        """
        first = self.at(step)
        return next((n for n in range(1, len(sizes)) if self.at(step + n) != first), len(sizes))
