"""What loggers write: the values of a step or an epoch, and how far a run was at a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

RecordKind = Literal["step", "epoch", "evaluation"]


class Record(NamedTuple):
    """The values of a step, of an epoch, or of evaluations inside of an epoch.

    Args:
        kind: which of them.
        step: the training steps completed.
        epoch: the index of the epoch.
        examples: the training examples since the run began.
        seconds: the seconds since the run began.
        values: names and numbers. Loggers of a run share them, so do not change them.
    """

    kind: RecordKind
    step: int
    epoch: int
    examples: int
    seconds: float
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run was at a checkpoint from which it resumes.

    Args:
        step: the training steps completed.
        epoch: the epochs completed.
        evaluated: the step of the last evaluation inside of an epoch; -1 for none.
        ended: the epochs whose values were logged; None for those completed. They are fewer in a checkpoint that
            another callback saved in `on_epoch_end`.
    """

    step: int
    epoch: int
    evaluated: int = -1
    ended: int | None = None

    def has(self, kind: str, step: int, epoch: int) -> bool:
        """True for what was logged before the checkpoint, and is not logged again.

        Args:
            kind: `"step"`, `"evaluation"`, `"epoch"`, or an item, which belongs to the end of an epoch.
            step: the training steps completed.
            epoch: the index of the epoch.
        """
        if step != self.step:
            return step < self.step
        ended = self.epoch if self.ended is None else self.ended
        known = {"step": True, "evaluation": step <= self.evaluated, "epoch": epoch < ended}
        return known.get(kind, epoch < self.epoch)
