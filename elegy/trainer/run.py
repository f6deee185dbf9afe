"""A call of `fit` that is under way: its counters, its limits, and the order of its data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elegy.callbacks import TerminateOnNaN
from elegy.callbacks.interrupt import Interrupts
from elegy.callers import stacklevel_of_caller
from elegy.checkpoint import Address
from elegy.data import ArraySource
from elegy.distributed import from_first
from elegy.engine.step_results import PlainStepResults, StepResults
from elegy.errors import CheckpointError
from elegy.lazy_logs import LazyLogs, from_json, to_json
from elegy.loading import Cursor, Part
from elegy.loading.part import ChunkSize, as_many_as_fit
from elegy.trainer.clock import RunClock
from elegy.trainer.config import FitConfig
from elegy.trainer.evaluation.evaluations import EvaluationPlan
from elegy.trainer.evaluation.schedule import EvaluationSchedule
from elegy.trainer.execution import ExecutionPlan
from elegy.trainer.listeners import Listeners
from elegy.trainer.nonfinite import LossWatch
from elegy.trainer.session import Session, UndoOnFailure


class Run:
    """A run that is under way.

    Args:
        session: the trainer's session.
        config: what was asked for.
        training: how the training batches run.
        evaluations: the evaluations of its validation data.
        listeners: the callbacks.
        undo: returns the trainer to where it was, until the first step is done.

    Attributes:
        steps: training steps since the run's beginning.
        examples: training examples since the run's beginning.
        first_epoch: the epoch's index at the run's beginning.
        epochs: the number of epochs of the run; None for as many as the other limits allow.
        end_epoch: the number of epochs at which the run ends, or None.
        ahead: how many steps of a running execution the state has seen and the counters have not.
        epoch_ended: whether the last epoch saw all of its data.
        reorders: for each time the run went back: the epoch, and after how many of its examples a new order begins.
        rollbacks: how often the run went back to a checkpoint, by its name.
        interrupts: knows whether a signal ends the run.
        added: the last values that callbacks added in this epoch, by name.
        resumed: the checkpoint from which the run goes on.
        clock: the time of the run.
        schedule: which evaluations are due.
        loss: checks the losses in logs that are read.
    """

    def __init__(
        self,
        session: Session,
        config: FitConfig,
        training: ExecutionPlan,
        evaluations: Sequence[EvaluationPlan],
        listeners: Listeners,
        undo: UndoOnFailure,
    ):
        self.session, self.config, self.undo = session, config, undo
        self.training = training
        self.listeners, self.callbacks = listeners, listeners.callbacks
        self.loader = training.loader
        self._processes = session.strategy.processes
        if config.initial_epoch:
            session.epoch = config.initial_epoch
        self.steps = self.examples = 0
        self._batches = self._batch_examples = 0  # of the running epoch
        self.ahead = 0
        self.first_epoch = session.epoch
        self.epochs = config.epochs
        if self.epochs is None and getattr(self.loader.source, "one_shot", False) and self.loader.limit is None:
            self.epochs = 1  # an iterator has one pass
        # The end of an iterator ends a run that has no number of epochs.
        self._until_end = self.epochs is None and self._processes == 1 and self.loader.may_end()
        begin = 0 if config.initial_epoch else session.epoch
        self.end_epoch = None if self.epochs is None else begin + self.epochs
        self.epoch_ended = False
        self.reorders: list[tuple[int, int]] = []
        self.rollbacks: dict[str, int] = {}
        self.interrupts = Interrupts(session)
        self.logs = {}
        self.added: dict[str, Any] = {}
        self.resumed: Path | Address | None = None
        self._unfinished: Mapping[str, Any] | None = None  # a hook that the interrupted run had not ended
        self.loader.start_at(session.epoch)
        # If every step is an execution, one may be ahead of the device before a time limit, so that it has work.
        budgets = [one.time_budget for one in self.callbacks if one.time_budget is not None]
        self.clock = RunClock(
            config.max_time, self._processes, ahead=int(training.layout.steps == 1), budget=min(budgets, default=None)
        )
        self.schedule = EvaluationSchedule(evaluations, self._count)
        stops = any(isinstance(callback, TerminateOnNaN) for callback in self.callbacks)
        self.loss = LossWatch(session.monitor.policy == "ignore" and not stops)

    @property
    def cursor(self) -> Cursor:
        """How much of the running epoch is done; zero between epochs."""
        return Cursor(self._batches, self._batch_examples)

    @property
    def logs(self) -> Mapping[str, float]:
        """The epoch's values after the last step."""
        if self._last is not None:
            results, k, step, epoch = self._last
            self.logs = self.loss.watch(results.logs(k), step, epoch)
        return self._logs

    @logs.setter
    def logs(self, logs: Mapping[str, float]) -> None:
        self._logs: Mapping[str, float] = logs
        self._last: tuple[Any, int, int, int] | None = None  # a step whose logs were not requested yet

    # what a checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        """The counters, fit for JSON."""
        return {
            "steps": self.steps,
            "examples": self.examples,
            "seconds": self.clock.seconds,
            "first_epoch": self.first_epoch,
            "cursor": self.cursor._asdict(),
            "reorders": self.reorders,
            "logs": _saved(self.logs) if self.cursor.batches else {},  # of a run that may have nothing left to train
            "evaluated": self.schedule.state_dict(),
            "added": _saved(LazyLogs(lambda: self.added)),
        }

    def load_state_dict(self, state: Mapping[str, Any], unfinished: Mapping[str, Any] | None = None) -> None:
        """Goes on where the run with these counters stopped, in a hook that `finish_hook` ends."""
        self._unfinished = unfinished
        self.steps, self.examples, self.first_epoch = state["steps"], state["examples"], state["first_epoch"]
        self._batches, self._batch_examples = Cursor(**state["cursor"])
        self.reorders = [(epoch, start) for epoch, start in state["reorders"]]
        self.logs, self.added = _loaded(state["logs"]), _loaded(state.get("added", {}))
        self.clock.go_on_from(state["seconds"])
        self.schedule.load_state_dict(state.get("evaluated", {}))

    def record(self, *, own: bool = True) -> dict[str, Any]:
        """What a later run needs to go on where this one is: counters, cursor, data, callbacks, the kind of loop.

        Args:
            own: as for `BatchLoader.state`.

        Raises:
            CheckpointError: if the state of the data cannot be had.
        """
        loader = self.loader
        data = loader.state(self.cursor.batches, own=own)
        places = self.schedule.places() if self._processes == 1 else {}  # not known of several processes' shares
        return {
            "data": data,
            "evaluations": places,
            "counters": self.state_dict(),
            "steps_per_execution": self.training.layout.steps,
            "static_steps": self.training.layout.static,
            "examples": None if loader.plan is None else loader.plan.size,
            "batch_size": loader.batch_size,
            "shuffle": self.config.shuffle,
            "callbacks": self.callbacks.state_dict(),
            "unfinished": self._unfinished_hook(),
        }

    def last_record(self) -> dict[str, Any]:
        """As `record`, of a run that is over, which may never be saved: data that cannot tell its state is counted."""
        try:
            return self.record()
        except CheckpointError:
            return self.record(own=False)

    def _unfinished_hook(self) -> dict[str, Any] | None:
        """The hook in which, or after whose failure, a checkpoint is saved, for the callbacks that it did not call."""
        if self.callbacks.unfinished is None:
            return None
        hook, event, only = self.callbacks.unfinished
        try:
            logs = _saved(event.logs)
        except Exception:  # the hook failed because a value cannot be computed; the state can be saved
            return None
        fields = {"epoch": event.epoch, "batch": event.batch, "evaluated": event.evaluated}
        return {"hook": hook, "only": only, "logs": logs, "added": [*event.added], **fields}

    def finish_hook(self) -> None:
        """Calls the callbacks that had not heard of an epoch or of evaluations when the checkpoint was saved."""
        left, self._unfinished = self._unfinished, None
        if left is not None:
            logs = _loaded(left["logs"])
            fields = {"epoch": left["epoch"], "batch": left["batch"], "evaluated": tuple(left["evaluated"])}
            fields["added"] = {name: logs[name] for name in left["added"]}
            self.emit(left["hook"], only=left["only"], logs=LazyLogs(lambda: logs), **fields)

    # events

    def emit(self, hook: str, **fields: Any) -> None:
        """Calls a hook of the callbacks with an event of the training; arguments as for `Listeners.emit`."""
        self.listeners.emit(
            hook,
            "train",
            self.training,
            epochs=self.end_epoch,
            last_step=self.last_step,
            examples=self.examples,
            evaluations=self.schedule.prefixes,
            **fields,
        )

    def _count(self, unit: str) -> float:
        """The count of steps, examples or seconds, which is the same in all processes."""
        if unit == "seconds":
            seconds = self.clock.seconds
            return seconds if self._processes == 1 else float(from_first(np.float64(seconds)))
        return self.session.step if unit == "steps" else self.examples

    # limits

    def going_on(self) -> bool:
        """True if there is an epoch to train, or to end: a run may resume after the last step of one, or before an
        evaluation.
        """
        if self.end_epoch is not None and self.session.epoch >= self.end_epoch:
            return False
        waits = self.cursor.batches > 0 and (self.loader.exhausted(self.cursor) or bool(self.schedule.due()))
        return waits or not (self.over() or (self._until_end and not self.cursor.batches and self.loader.is_over()))

    def over(self) -> bool:
        """True if the run ends before the next step."""
        if self._processes > 1:
            self.interrupts.agree()
        limited, most = self.clock.limited, self.config.max_steps
        if limited and self.clock.budget_is_up():
            self.interrupts.time_out()
        if self.session.stop_training or (most is not None and self.steps >= most):
            return True
        return limited and self.clock.is_up()

    @property
    def last_step(self) -> int | None:
        """The number of completed steps at which `max_steps` ends the run; None without it."""
        most = self.config.max_steps
        return None if most is None else self.session.step + self.ahead - self.steps + most

    def last_count(self, unit: str) -> float | None:
        """Returns the largest count of a unit that an interval of the run may reach; None if it is unknown.

        Args:
            unit: `"epochs"`, `"steps"`, `"examples"` or `"seconds"`.
        """
        if unit == "epochs":
            return self.end_epoch
        if unit == "seconds":
            return self.config.max_time
        counts = [] if self.last_step is None else [self.last_step]
        if self.end_epoch is not None and self.loader.steps is not None:
            left = (self.end_epoch - self.session.epoch) * self.loader.steps - self.cursor.batches
            counts.append(self.session.step + left)
        if unit == "steps" or not counts:
            return min(counts, default=None)
        size = self.loader.batch_size
        return None if size is None else self.examples + (min(counts) - self.session.step) * size

    def _chunk_size(self) -> ChunkSize:
        """Ends chunks where a callback acts on the run, an evaluation is due or the number of microbatches changes, and
        before the time is up."""
        step, examples, pace = self.session.step, self.examples, self.clock.pace
        parts = (self.callbacks, self.schedule, self.session.microbatches)
        bounds = [part.execution_size for part in parts if part.acts_on_run]
        if pace is None and not bounds:
            return as_many_as_fit

        def size(batches: int, rows: int, sizes: Sequence[int]) -> int:
            counts = [bound(step + batches, examples + rows, sizes) for bound in bounds]
            return min([len(sizes), *counts, *([] if pace is None else [pace.most(step + batches)])])

        return size

    # counters

    def count(self, sizes: tuple[int, ...]) -> None:
        """Counts steps.

        Args:
            sizes: the number of examples of each.
        """
        steps, examples = len(sizes), sum(sizes)
        self.ahead -= steps
        self.session.step += steps
        self.examples += examples
        self._batches += steps
        self._batch_examples += examples

    def end_epoch_now(self) -> int:
        """Counts an epoch that saw all of its data and was validated; returns its index."""
        self.session.epoch += 1
        self._batches = self._batch_examples = 0
        self.loader.end()
        return self.session.epoch - 1

    def warn_without_validation(self) -> None:
        """Warns if the run reached its limit in a first epoch of unknown length, so that nothing was validated."""
        session = self.session
        endless = self.loader.steps is None and self.cursor.batches > 0 and session.epoch == self.first_epoch
        waiting = self.schedule.prefixes and not self.schedule.acts_on_run
        if endless and waiting and not session.stop_training:
            warnings.warn(
                "nothing was validated: validation runs at the end of an epoch, and the run reached max_steps or "
                "max_time before its iterable ended. Pass `steps_per_epoch` to fit, or "
                "`validation_freq=Every(steps=...)`.",
                stacklevel=stacklevel_of_caller(),
            )

    def keep_logs(self, results: StepResults | PlainStepResults, k: int, added: dict[str, Any]) -> None:
        """Keeps the logs of a step.

        Args:
            results: what an execution returned.
            k: the number of the step in it.
            added: what callbacks have added to the logs before the step.
        """
        self._last = results, k, self.session.step, self.session.epoch
        if added or self.added:
            logs = self.logs
            assert isinstance(logs, LazyLogs)
            logs.check_free(self.added)
            with_added(logs, added)
            self.added |= added

    def take_added(self) -> dict[str, Any]:
        """Returns what callbacks added in the epoch that ends; the next one starts without."""
        added, self.added = self.added, {}
        return added

    # data

    def part(self) -> Part:
        """The part of the epoch that is left, up to `max_steps`."""
        most = self.config.max_steps
        return Part(self._order(), None if most is None else most - self.steps, self.cursor, self._chunk_size())

    def _order(self) -> np.ndarray | None:
        """The order in which the epoch sees the examples, `int[examples]`, or `int[examples, members]`; None for the
        data's own."""
        source, seed, epoch = self.loader.source, self.session.seed, self.session.epoch
        if not isinstance(source, ArraySource):
            return None
        if not self.config.shuffle:
            # Rows are gathered, which copies them: steps may still read the user's arrays when callbacks hear of them.
            return np.arange(source.size) if source.on_host else None
        if (seeds := self.session.strategy.data_seeds) is not None:
            return np.stack([source.order(one, epoch) for one in seeds], axis=1)
        # A later epoch also gets a new order: its plain order may contain the batch that was not finite.
        earlier = sum(which < epoch for which, _ in self.reorders)
        order = source.order(seed, epoch, earlier)
        for attempt, (which, start) in enumerate(self.reorders, 1):
            if which == epoch:  # what was seen before stays seen
                rest = order[start:]
                order = np.concatenate([order[:start], source.reordered(rest, seed, epoch, attempt)])
        return order


def _saved(logs: Mapping[str, float]) -> dict[str, Any]:
    return {name: to_json(value) for name, value in logs.items()}


def _loaded(logs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: from_json(value) for name, value in logs.items()}


def with_added(logs: LazyLogs, added: Mapping[str, Any]) -> LazyLogs:
    """Adds what callbacks have logged to the logs of a step.

    Args:
        logs: what the step returned.
        added: values by name.
    """
    for name, value in added.items():
        logs.add(name, value)
    return logs
