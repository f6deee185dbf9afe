"""The history of a population, by member."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from elegy.callbacks import History
from elegy.lazy_logs import MemberValues
from elegy.trainer.population.stopping import End, MemberStopping


class MemberHistory(NamedTuple):
    """The values of the last `fit` of a population.

    Args:
        history: that of the run, whose values have those of the members.
        stopping: ended members early; None if nothing did.
        members: the number of members.
    """

    history: History
    stopping: MemberStopping | None
    members: int

    def end(self, member: int) -> End | None:
        """Where a member stopped early, or None."""
        return None if self.stopping is None else self.stopping.ends[member]

    def table(self) -> dict[str, np.ndarray]:
        """By name `float[epochs, members]`; NaN after a member has stopped."""
        return {
            name: np.stack([self._column(name, values, i) for i in range(self.members)], axis=1)
            for name, values in self.history.history.items()
        }

    def _column(self, name: str, values: list[float], member: int) -> np.ndarray:
        own = np.array([one.members[member] if isinstance(one, MemberValues) else one for one in values])
        end = self.end(member)
        if end is None:
            return own
        ended = end.counts.get(name, 0)
        own = np.where(np.arange(len(own)) < ended, own, np.nan)
        own[ended : ended + 1] = end.running.get(name, np.nan)
        return own

    def values(self, name: str) -> np.ndarray:
        """The value of each member for the state that it has, `float[members]`.

        Raises:
            KeyError: if there is no value of this name; the message lists the names.
        """
        table = self.table()
        if name not in table:
            raise KeyError(f"there is no {name!r} in the history. It has: {', '.join(table) or 'nothing'}.")
        return np.array([self._value(name, column, i) for i, column in enumerate(table[name].T)])

    def _value(self, name: str, column: np.ndarray, member: int) -> float:
        end, kept = self.end(member), None if self.stopping is None else self.stopping.kept[member]
        if kept is None:
            return float(column[-1])
        # Evaluations need not run in each epoch, and may run several times in one.
        records = [one for found in self.history.evaluations.values() for one in found if name in one]
        until = [one for one in records if one["step"] <= kept.step]
        if until:
            value = max(until, key=lambda one: one["step"])[name]
            return float(value.members[member] if isinstance(value, MemberValues) else value)
        if not records and kept.epoch in self.history.epoch and len(column) == len(self.history.epoch):
            return float(column[self.history.epoch.index(kept.epoch)])
        return float(column[-1 if end is None else max(end.counts.get(name, 0) + (name in end.running) - 1, 0)])

    def of(self, member: int) -> History:
        """The history of one member, as its own run would have it."""
        state, end = self.history.state_dict(), self.end(member)

        def own(value: Any) -> Any:
            return value[member] if isinstance(value, list) else value

        def records(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
            kept = [one for one in found if end is None or one["step"] <= end.step]
            return [{name: own(value) for name, value in one.items()} for one in kept]

        def values(name: str, found: list[Any]) -> list[Any]:
            if end is None:
                return [own(one) for one in found]
            last = [end.running[name]] if name in end.running else []
            return [*map(own, found[: end.counts.get(name, 0)]), *last]

        state["history"] = {name: values(name, found) for name, found in state["history"].items()}
        state["evaluations"] = {name: records(found) for name, found in state["evaluations"].items()}
        state["within"] = {name: own(value) for name, value in state["within"].items()}
        if end is not None:
            before = [one for one in state["epoch"] if one < end.epoch]
            state["epoch"], state["step"] = before, state["step"][: len(before)]
            if end.running:
                state["epoch"], state["step"] = [*before, end.epoch], [*state["step"], end.step]
                state["last"] = list(end.running)
        history = History()
        history.load_state_dict(state)
        return history
