"""Early stopping of the members of a population, each by its own values."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks import Callback, EarlyStopping, Event
from elegy.callbacks.early_stopping import going_on, without_logs
from elegy.lazy_logs import MemberValues, as_value, from_json, to_json


class End(NamedTuple):
    """Where a member stopped.

    Args:
        step: the completed steps.
        epoch: the completed epochs.
        counts: by log, the number of completed epochs that had a value.
        running: the member's values of the epoch inside of which it stopped; none if it stopped at the end of one.
    """

    step: int
    epoch: int
    counts: dict[str, int]
    running: dict[str, float]


class Kept(NamedTuple):
    """Where a member had the state that it has now.

    Args:
        epoch: the index of the epoch.
        step: the completed steps.
    """

    epoch: int
    step: int


class MemberStopping(Callback):
    """Applies an `EarlyStopping` to every member.

    A member that stops keeps the state that it has then, or its best one. The others train on, and so does the stopped
    one's part of the compiled step, whose results are dropped: nothing is compiled again. The run ends when all members
    have stopped. Checkpoints contain the states of stopped members, and the best ones if they are to be restored, so
    that a run resumes to the same bits. A member that has stopped stays so, whatever the patience of the resumed run.

    Args:
        rule: the callback for one run.
        count: the number of members.

    Attributes:
        ends: for each member where it stopped, or None.
        kept: for each member, where it had the state that it has now; None for the end of the run.
    """

    reads_logs = True

    def __init__(self, rule: EarlyStopping, count: int):
        self.rule, self.count = rule, count
        self.ends: list[End | None] = [None] * count
        self.kept: list[Kept | None] = [None] * count
        self._members: list[EarlyStopping] = []
        self._trainer: Any = None  # while a run is under way
        self._best: Any = None  # without logs, to which an evaluation may add accumulators
        self._final: Any = None
        self._settled = False  # whether the run has ended, and its state has the final and the best ones
        self._counts: dict[str, int] = {}
        self._within: dict[str, Any] = {}  # the last values of evaluations inside of the running epoch

    def on_train_begin(self, event: Event) -> None:
        """Forgets the last run."""
        self._members = [copy.deepcopy(self.rule) for _ in range(self.count)]
        trainer: Any = SimpleNamespace(stop_training=False)
        for member in self._members:
            member.restore_best_weights = False
            member.on_train_begin(dataclasses.replace(event, trainer=trainer))
        self._trainer, self._settled = event.trainer, False
        self.ends, self.kept = [None] * self.count, [None] * self.count
        self._best = self._final = None
        self._counts, self._within = {}, {}

    def last_steps(self) -> list[int | None]:
        """The last step of each member; None for those that have not stopped."""
        return [None if end is None else end.step for end in self.ends]

    def on_evaluation_end(self, event: Event) -> None:
        """Compares the values of an evaluation inside of the epoch."""
        self._within |= {name: as_value(value) for name, value in event.evaluation_logs.items()}
        self._compare(event, "on_evaluation_end")

    def on_epoch_end(self, event: Event) -> None:
        """Compares the values of an epoch."""
        for name in self._within.keys() | event.logs.keys():
            self._counts[name] = self._counts.get(name, 0) + 1
        self._within = {}
        self._compare(event, "on_epoch_end")

    def _compare(self, event: Event, hook: str) -> None:
        better, stops = np.zeros(self.count, bool), np.zeros(self.count, bool)
        logs = dict(event.logs)
        for i, member in enumerate(self._members):
            if self.ends[i] is not None:
                continue
            trainer: Any = SimpleNamespace(stop_training=False)
            own = dataclasses.replace(event, trainer=trainer, logs=_of_member(logs, i))
            before = member.best_step
            getattr(member, hook)(own)
            better[i] = member.best_step == event.step != before
            stops[i] = trainer.stop_training
            if stops[i]:
                inside = event.batch is not None
                running = _of_member({**logs, **self._within}, i) if inside else {}
                self.ends[i] = End(event.step, event.epoch + (not inside), dict(self._counts), running)
                self.kept[i] = Kept(event.epoch, event.step)
        state = event.trainer.state if stops.any() or (better.any() and self.rule.restore_best_weights) else None
        state = None if state is None else without_logs(state)
        if self.rule.restore_best_weights and better.any():
            self._best = state if self._best is None else select(better, state, self._best)
        if stops.any():
            final = state
            if self.rule.restore_best_weights:
                final = self._restored(state, stops)
            self._final = final if self._final is None else select(stops, final, self._final)
        if all(end is not None for end in self.ends):
            event.trainer.stop_training = True

    def _restored(self, state: Any, which: np.ndarray) -> Any:
        """The best states of members, which go on with the keys and counters of the given ones."""
        has_best = np.array([member.best is not None for member in self._members])
        for i in np.flatnonzero(which & has_best):
            best = self._members[i]
            if best.best_epoch is not None and best.best_step is not None:
                self.kept[i] = Kept(best.best_epoch, best.best_step)
        return state if self._best is None else select(which & has_best, going_on(self._best, state), state)

    def on_train_end(self, event: Event) -> None:
        """Gives the members their final states."""
        self._trainer = None
        if event.ended == "failed":
            return
        current = event.trainer.state
        before = state = without_logs(current)
        stopped = np.array([end is not None for end in self.ends])
        self._settled = event.ended != "interrupted"
        if self.rule.restore_best_weights and self._best is not None and self._settled:
            state = self._restored(state, ~stopped)
        if self._final is not None:
            state = select(stopped, self._final, state)
        if state is not before:
            event.trainer.state = state.replace(_logs=current._logs)
        if self._settled:
            self._best = self._final = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts of every member, and where those that stopped did."""
        return {
            "members": [member.state_dict() for member in self._members],
            "ends": self.ends,
            "kept": self.kept,
            "counts": self._counts,
            "within": {name: to_json(value) for name, value in self._within.items()},
            "settled": self._settled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the counts of the resumed run, and stops it at once if all members have stopped."""
        for member, saved in zip(self._members, state["members"], strict=True):
            member.load_state_dict(saved)
        self.ends = [None if end is None else End(*end) for end in state["ends"]]
        self.kept = [
            None if kept is None or end is None else Kept(*kept)
            for kept, end in zip(state["kept"], self.ends, strict=True)
        ]
        self._counts = dict(state["counts"])
        self._within = {name: from_json(value) for name, value in state["within"].items()}
        if state["settled"]:
            self._best = self._final = without_logs(self._trainer.state)
        if all(end is not None for end in self.ends):
            self._trainer.stop_training = True

    def kept_states(self) -> dict[str, Any]:
        """Returns the best states of the members, and the states of those that have stopped."""
        return {name: one for name, one in (("best", self._best), ("final", self._final)) if one is not None}

    def load_kept_states(self, states: dict[str, Any]) -> None:
        """Restores the best states, and those of stopped members."""
        self._best, self._final = states.get("best"), states.get("final")


def _of_member(logs: dict[str, float], index: int) -> dict[str, float]:
    return {
        name: float(value.members[index]) if isinstance(value, MemberValues) else value for name, value in logs.items()
    }


@jax.jit
def _select(which: jax.Array, some: list[Any], others: list[Any]) -> list[Any]:
    def choose(one: Any, other: Any) -> Any:
        return jnp.where(which.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return [choose(one, other) for one, other in zip(some, others, strict=True)]


def select(which: np.ndarray, some: Any, others: Any) -> Any:
    """Returns the stacked states of some members, and of the others.

    Args:
        which: `bool[members]`, True for a member whose state is that of `some`.
        some: stacked states.
        others: stacked states.
    """
    treedef = jax.tree.structure(some)
    return jax.tree.unflatten(treedef, _select(which, jax.tree.leaves(some), jax.tree.leaves(others)))
