"""What a callback's hook receives."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Literal

from elegy.lazy_logs import LazyLogs


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A moment of a run, as a callback's hook sees it.

    Args:
        trainer: the `Trainer`; `trainer.state` is the state at this moment and stays valid when kept,
            `trainer.stop_training = True` ends the run after the running step.
        phase: what runs; inside of `fit`, validation is `"test"`.
        step: completed training steps, over the trainer's life.
        epoch: index of the running epoch (of the last one, at the end of `fit`), over the trainer's life.
        batch: index of the batch in its epoch; None outside of the batch hooks.
        logs: log names and floats. Batch hooks see the running values of the epoch, `on_epoch_end` those of the
            whole epoch and, with the prefix `val_`, of its validation, `on_train_end` those after the run's last step.
            Reading them may wait for the device.
        epochs: the epoch count at which the run ends; None when something else ends it.
        steps: batches in an epoch; None where the source does not tell.
        batch_size: examples in a full batch; None where the source does not tell.
        examples: training examples seen by the run so far.
        elapsed: seconds from the run's beginning to the call of the hook. The device may be far behind: see `seconds`.
        validates: whether the run has validation data, be it not for every epoch.
        ended: at the end of `fit`: `"interrupted"` by a signal, `"failed"` with an exception, otherwise
            `"finished"`; None before.
        resumed: in `on_epoch_begin`, whether batches of the epoch were trained before: by the run that was cut, or
            before this one went back to a checkpoint.
        is_current: False for a step inside of an execution of several, of which `trainer.state` has seen the later
            steps, too.

    Example:
        >>> Event(trainer=None, phase="train", step=10, epoch=0, batch=9, logs={"loss": 0.5}).logs["loss"]
        0.5
    """

    trainer: Any
    phase: Literal["train", "test", "predict"]
    step: int
    epoch: int
    batch: int | None = None
    logs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    examples: int = 0
    elapsed: float = 0.0
    validates: bool = False
    ended: Literal["finished", "interrupted", "failed"] | None = None
    resumed: bool = False
    is_current: bool = True
    _made: float = dataclasses.field(default_factory=time.monotonic, repr=False, compare=False)

    @property
    def seconds(self) -> float:
        """Seconds from the run's beginning until the results in `logs` were computed; waits for them.

        Steps run asynchronously, so a hook is called long before its step is done. In hooks without logs it is the
        same as `elapsed`.
        """
        computed = self.logs.ready_at if isinstance(self.logs, LazyLogs) else self._made
        return self.elapsed + max(computed - self._made, 0.0)
