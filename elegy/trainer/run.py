"""One call of `fit`: what was asked for, the counters, and the events."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np

from elegy.callbacks import CallbackList, Event, TerminateOnNaN
from elegy.callbacks.interrupt import Interrupts
from elegy.checkpoint import Address
from elegy.data import ArraySource, epoch_permutation
from elegy.distributed import from_first
from elegy.lazy_logs import LazyLogs
from elegy.loading import Cursor
from elegy.loading.chunks import ChunkSize, as_many_as_fit
from elegy.trainer.execution import ExecutionPlan
from elegy.trainer.nonfinite import LossWatch
from elegy.trainer.pace import Pace


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """What a call of `fit` asked for, checked.

    Args:
        epochs: the epoch count at which the run ends.
        max_steps: the steps of the run after which it ends.
        max_time: the seconds of the run after which it ends.
        shuffle: whether arrays are shuffled.
        validation_freq: validate every so many epochs.
    """

    epochs: int
    max_steps: int | None = None
    max_time: float | None = None
    shuffle: bool = True
    validation_freq: int = 1


class Before:
    """What a trainer goes back to when a run fails before its first step.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        names = ("_initialized", "_pending", "_record", "_run", "history", "epoch", "step")
        self._attributes: dict[str, Any] = {
            "_buffer": trainer._buffer.fork(),
            **{name: getattr(trainer, name) for name in names},
        }
        self._skipped = trainer._monitor.skipped

    def forget(self) -> None:
        """Lets go of the old state: a step is done."""
        self._attributes = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None and self._attributes and self._attributes["_buffer"].readable():
            self._trainer.__dict__.update(self._attributes)
            self._trainer._monitor.skipped = self._skipped


class Run:
    """A run that is under way.

    Args:
        trainer: the trainer.
        config: what was asked for.
        training: how the training batches run.
        validation: how the validation batches run; None without validation.
        callbacks: who listens.
        before: the way back, until the first step is done.

    Attributes:
        steps: training steps since the run's beginning.
        examples: training examples since the run's beginning.
        ahead: how many steps of a running execution the state has seen and the counters have not.
        cursor: how much of the running epoch is done; zero between epochs.
        epoch_ended: whether the last epoch saw all of its data.
        reorders: for each time the run went back: the epoch, and after how many of its examples a new order begins.
        rollbacks: how often the run went back to a checkpoint, by its name.
        interrupts: knows whether a signal ends the run.
        logs: the epoch's values after the last step.
        resumed: the checkpoint from which the run goes on.
    """

    def __init__(
        self,
        trainer: Any,
        config: FitConfig,
        training: ExecutionPlan,
        validation: ExecutionPlan | None,
        callbacks: CallbackList,
        before: Before,
    ):
        self.trainer, self.config, self.callbacks = trainer, config, callbacks
        self.training, self.validation = training, validation
        self.loader = training.loader
        self.before = before
        self.steps, self.examples, self.cursor = 0, 0, Cursor()
        self.ahead = 0
        self.first_epoch = trainer.epoch
        self.epoch_ended = False
        self.reorders: list[tuple[int, int]] = []
        self.rollbacks: dict[str, int] = {}
        self.interrupts = Interrupts(trainer)
        self.logs: Mapping[str, float] = {}
        self.resumed: Path | Address | None = None
        self._computing: deque[LazyLogs] = deque()
        self._started = time.monotonic()
        self.loader.start_at(trainer.epoch)
        self._pace: Pace | None = None
        told = any(isinstance(callback, TerminateOnNaN) for callback in callbacks)
        self._loss = LossWatch(trainer.nonfinite == "ignore" and not told)

    @property
    def seconds(self) -> float:
        """The time since the run's beginning."""
        return time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """The counters, fit for JSON."""
        return {
            "steps": self.steps,
            "examples": self.examples,
            "seconds": self.seconds,
            "first_epoch": self.first_epoch,
            "cursor": self.cursor._asdict(),
            "reorders": self.reorders,
            "logs": dict(self.logs) if self._may_have_ended() else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the run with these counters stopped."""
        self.steps, self.examples, self.first_epoch = state["steps"], state["examples"], state["first_epoch"]
        self.cursor = Cursor(**state["cursor"])
        self.reorders = [(epoch, start) for epoch, start in state["reorders"]]
        self.logs = state["logs"]
        self._started = time.monotonic() - state["seconds"]

    def _may_have_ended(self) -> bool:
        """Whether the running epoch may have no step left, so that its logs are needed to end it."""
        return self.cursor.batches > 0 and (self.loader.steps is None or self.loader.exhausted(self.cursor))

    def emit(
        self,
        hook: str,
        *,
        epoch: int | None = None,
        batch: int | None = None,
        logs: Any = None,
        ended: Any = None,
        resumed: bool = False,
        is_current: bool = True,
        failure: BaseException | None = None,
    ) -> None:
        """Tells the callbacks; an event that nobody hears is not made."""
        if not self.callbacks.listens(hook) and hook != "on_train_begin":
            return
        event = Event(
            trainer=self.trainer,
            phase="train",
            step=self.trainer.step,
            epoch=self.trainer.epoch if epoch is None else epoch,
            batch=batch,
            logs=logs if logs is not None else {},
            epochs=self.config.epochs,
            steps=self.loader.steps,
            batch_size=self.loader.batch_size,
            examples=self.examples,
            elapsed=self.seconds,
            validates=self.validation is not None,
            ended=ended,
            resumed=resumed,
            is_current=is_current,
        )
        self.callbacks.emit(hook, event, failure)

    def going_on(self) -> bool:
        """Whether there is an epoch to train, or to end: a run may resume after the last step of one."""
        if self.trainer.epoch >= self.config.epochs:
            return False
        return (self.cursor.batches > 0 and self.loader.exhausted(self.cursor)) or not self.over()

    def over(self) -> bool:
        """Whether the run ends before the next step."""
        config = self.config
        if self.trainer.strategy.processes > 1:
            self.interrupts.agree()
        return (
            self.trainer.stop_training
            or (config.max_steps is not None and self.steps >= config.max_steps)
            or (config.max_time is not None and self._time_is_up(config.max_time))
        )

    def _time_is_up(self, most: float) -> bool:
        """By the clock of the first process: all must stop after the same step."""
        up = self.seconds >= most
        return up if self.trainer.strategy.processes == 1 else bool(from_first(np.bool_(up)))

    def epoch(self) -> Mapping[str, float]:
        """Trains for an epoch, or until the run is over; returns the logs of the last step."""
        trainer, config = self.trainer, self.config
        executor, buffer = trainer._executor, trainer._buffer
        order = self._order()
        limit = None if config.max_steps is None else config.max_steps - self.steps
        size = self._chunk_size()
        # Before the reset, because an iterable may be exhausted.
        chunks = self.training.chunks(buffer, order, limit, self.cursor, size)
        if not self.cursor.batches:
            executor.reset(buffer, "train")
            self.logs = {}
        stopped = False
        held: AbstractContextManager[Any] = self.interrupts if executor.compiles(buffer.cls, "train") else nullcontext()
        try:
            for chunk in chunks:
                heard = self.callbacks.batches_heard("train", trainer.step, self.examples, chunk.sizes)
                if heard:
                    self.emit("on_train_batch_begin", batch=chunk.first)
                sizes: tuple[int, ...] = ()
                done = 0
                try:
                    with held:
                        out = executor.run("train", buffer, chunk, trainer.epoch)
                        sizes, self.ahead = chunk.sizes, chunk.count
                        self.before.forget()
                        self.steps += chunk.count
                    self._look_at_device(out, chunk.count)
                    if trainer._monitor.guards:
                        trainer._monitor.record(out, trainer.step, trainer.epoch, buffer)
                    for k in heard:
                        self._count(chunk.sizes[done : k + 1])
                        done = k + 1
                        if k:
                            self.emit("on_train_batch_begin", batch=chunk.first + k, is_current=False)
                        self.logs = self._loss.watch(out.logs(k), trainer.step, trainer.epoch)
                        last = k == chunk.count - 1
                        self.emit("on_train_batch_end", batch=chunk.first + k, logs=self.logs, is_current=last)
                finally:  # the state has seen the whole chunk, even if a callback raised at one of its steps
                    self._count(sizes[done:])
                    if sizes:
                        self.logs = self._loss.watch(out.logs(chunk.count - 1), trainer.step, trainer.epoch)
                if stopped := self.over():
                    break
        finally:
            chunks.close()  # type: ignore[attr-defined]  # a generator: its thread ends now
        if trainer.nonfinite in ("raise", "rollback"):
            trainer._monitor.settle()
        self.epoch_ended = not stopped or self.loader.exhausted(self.cursor)
        return self.logs

    def _look_at_device(self, out: Any, count: int) -> None:
        """Notes which of the noted values the device has computed; before a time limit, waits for it.

        What is queued when the time is up would still be computed, and the pace be that of queueing. If every step is
        an execution, one may be ahead, so that the device has work.

        Args:
            out: what the execution returned that was queued last.
            count: its number of steps.
        """
        computing, timed = self._computing, self._pace is not None
        if timed:
            computing.append(out.logs(count - 1))
        while computing and computing[0].ready is not False:
            computing.popleft()
        while timed and len(computing) > (self.training.layout.steps == 1):
            _ = computing.popleft().ready_at

    def note_when_computed(self, logs: Mapping[str, float]) -> None:
        """Has the loop look, whenever it has queued an execution, whether the device has computed the values."""
        if isinstance(logs, LazyLogs):
            self._computing.append(logs)

    def _chunk_size(self) -> ChunkSize:
        """Ends chunks where a callback acts on the run, and before the time is up."""
        step, examples, callbacks = self.trainer.step, self.examples, self.callbacks
        # Several processes would have to agree on the time before each chunk.
        if self.config.max_time is not None and self._pace is None and self.trainer.strategy.processes == 1:
            self._pace = Pace(self.config.max_time - self.seconds)
        pace = self._pace
        if pace is None and not callbacks.acts_on_run:
            return as_many_as_fit

        def size(batches: int, rows: int, sizes: Sequence[int]) -> int:
            count = callbacks.execution_size(step + batches, examples + rows, sizes)
            return count if pace is None else min(count, pace.most(step + batches))

        return size

    def end_epoch(self) -> int:
        """Counts an epoch that saw all of its data and was validated; returns its index."""
        self.trainer.epoch += 1
        self.cursor = Cursor()
        self.loader.end()
        return self.trainer.epoch - 1

    def warn_without_validation(self) -> None:
        """Warns if the run reached its limit in a first epoch of unknown length, so that nothing was validated."""
        trainer = self.trainer
        endless = self.loader.steps is None and self.cursor.batches > 0 and trainer.epoch == self.first_epoch
        if endless and self.validation is not None and not trainer.stop_training:
            warnings.warn(
                "nothing was validated: validation runs at the end of an epoch, and the run reached max_steps or "
                "max_time before its iterable ended. Pass `steps_per_epoch` to fit.",
                stacklevel=4,
            )

    def _count(self, sizes: tuple[int, ...]) -> None:
        examples = sum(sizes)
        self.ahead -= len(sizes)
        self.trainer.step += len(sizes)
        self.examples += examples
        self.cursor = Cursor(self.cursor.batches + len(sizes), self.cursor.examples + examples)

    def _order(self) -> np.ndarray | None:
        """The order in which the epoch sees the examples; `None` for the data's own."""
        source, seed, epoch = self.loader.source, self.trainer.seed, self.trainer.epoch
        if not isinstance(source, ArraySource):
            return None
        if not self.config.shuffle:
            # Rows are gathered, which copies them: steps may still read the user's arrays when callbacks hear of them.
            return np.arange(source.size) if source.on_host else None
        # Whatever was not finite in the plain order of a later epoch must not come back there either.
        earlier = sum(which < epoch for which, _ in self.reorders)
        order = epoch_permutation(seed, epoch, source.size, earlier)
        for attempt, (which, start) in enumerate(self.reorders, 1):
            if which == epoch:  # what was seen before stays seen
                rest = order[start:]
                order = np.concatenate([order[:start], rest[epoch_permutation(seed, epoch, len(rest), attempt)]])
        return order

    def validation_now(self) -> ExecutionPlan | None:
        """How the validation of this epoch runs; None if it has none."""
        return self.validation if (self.trainer.epoch + 1) % self.config.validation_freq == 0 else None
