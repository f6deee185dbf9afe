"""The record that `fit` returns."""

from __future__ import annotations

from collections import deque
from typing import Any

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.callbacks.history_plot import history_html, plot_history
from elegy.lazy_logs import as_value, from_json, to_json


class History(Callback):
    """Keeps every epoch's logs and every evaluation's values. `Trainer.fit` adds one and returns it.

    The values of an epoch or an evaluation are read from the device when the next one ends, at the end of the run, or
    when an attribute is read, so that the loop does not wait. If a run stops inside of an epoch, the last entry has the
    running values of that epoch, and those of the last evaluation inside of it. A resumed run replaces it when the
    epoch ends.

    Attributes:
        epoch: the index of the epoch of each entry.
        step: the completed training steps at each entry.

    Example:
        >>> history = History()
        >>> history.on_train_begin(Event(None, "train", step=0, epoch=0))
        >>> history.on_epoch_end(Event(None, "train", step=10, epoch=0, logs={"loss": 0.5}))
        >>> history.history, history.epoch
        ({'loss': [0.5]}, [0])
    """

    reads_logs = True

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.epoch: list[int] = []
        self.step: list[int] = []
        self._history: dict[str, list[float]] = {}
        self._evaluations: dict[str, list[dict[str, float]]] = {}
        self._within: dict[str, float] = {}  # the last values of evaluations inside of the running epoch
        self._last: list[str] = []
        self._unread: deque[Event] = deque()
        self._running: int | None = None  # the index of the running epoch

    @property
    def history(self) -> dict[str, list[float]]:
        """A dict of log names to lists with one float for each epoch; validation names begin with `val_`.

        The list of a name that is not logged in every epoch (`validation_freq=2`) is shorter. If an evaluation runs
        several times in an epoch, its last value is the epoch's; `evaluations` has all of them.
        """
        self._read()
        return self._history

    @property
    def evaluations(self) -> dict[str, list[dict[str, float]]]:
        """For each data set of the validation, by its name, a record of every evaluation, in order.

        A record has `epoch` (the index), `step` (completed training steps), `examples` (of the run so far), and the
        values under the names of the logs, such as `val_loss`. The name of a single data set is `"val"`.

        Example:
            >>> history, counts = History(), {"examples": 80, "evaluations": ("val_",), "evaluated": ("val_",)}
            >>> history.on_train_begin(Event(None, "train", step=0, epoch=0))
            >>> logs = {"loss": 0.5, "val_loss": 0.6}
            >>> history.on_evaluation_end(Event(None, "train", step=10, epoch=0, logs=logs, **counts))
            >>> history.evaluations
            {'val': [{'epoch': 0, 'step': 10, 'examples': 80, 'val_loss': 0.6}]}
        """
        self._read()
        return self._evaluations

    def _read(self, but: int = 0) -> None:
        """Reads the entries from the device, without the last `but` ones."""
        while len(self._unread) > but:
            event = self._unread.popleft()
            self._record(event)
            if event.batch is None:
                values = {**event.logs, **self._within, **event.logs}  # in the order of the logs
                if event.ended is None:  # otherwise a resumed run may continue the epoch
                    self._within = {}
                self._last = list(values)
                for name, value in values.items():
                    self._history.setdefault(name, []).append(as_value(value))
            else:
                self._within |= event.evaluation_logs

    def _record(self, event: Event) -> None:
        values = event.evaluation_logs
        counts = {"epoch": event.epoch, "step": event.step, "examples": event.examples}
        for prefix in event.evaluated:
            mine = {name: value for name, value in values.items() if event.evaluation_of(name) in (prefix, None)}
            name = prefix.removeprefix("val_").removesuffix("_") or "val"
            self._evaluations.setdefault(name, []).append({**counts, **mine})

    def on_train_begin(self, event: Event) -> None:
        """Starts an empty record."""
        self._clear()

    def on_epoch_begin(self, event: Event) -> None:
        """Stores the index of the running epoch."""
        self._running = event.epoch

    def on_evaluation_end(self, event: Event) -> None:
        """Adds the values of evaluations inside of the epoch."""
        self._unread.append(event)
        self._read(but=1)

    def on_epoch_end(self, event: Event) -> None:
        """Adds the epoch's values, and those of the evaluations that followed it."""
        self._running = None
        self._add(event)

    def _add(self, event: Event) -> None:
        """Adds an entry, or replaces the one that a run left when it stopped inside of this epoch."""
        self._read()
        if self.epoch and self.epoch[-1] == event.epoch:
            self.epoch.pop()
            self.step.pop()
            for name in self._last:
                self._history[name].pop()
        self.epoch.append(event.epoch)
        self.step.append(event.step)
        self._unread.append(event)

    def on_train_end(self, event: Event) -> None:
        """Adds the running values of an epoch that did not end, and reads the last entry."""
        # If the epoch had no batch, the event has the logs of the epoch before.
        if self._running == event.epoch and event.ended != "failed" and event.logs:
            self._add(event)
        self._read()

    def state_dict(self) -> dict[str, Any]:
        """Returns the record of the run."""
        history = {name: [*map(to_json, values)] for name, values in self.history.items()}
        return {
            "history": history,
            "epoch": list(self.epoch),
            "step": list(self.step),
            "last": list(self._last),
            "evaluations": {name: [*map(_saved, records)] for name, records in self._evaluations.items()},
            "within": _saved(self._within),
            "running": self._running,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the record of the interrupted run."""
        self._history = {name: [*map(from_json, values)] for name, values in state["history"].items()}
        saved = state.get("evaluations", {})
        self._evaluations = {name: [*map(_loaded, records)] for name, records in saved.items()}
        self._within = _loaded(state.get("within", {}))
        self._unread.clear()
        self._running = state.get("running")  # where nothing is left to train, no epoch begins
        self.epoch, self._last = list(state["epoch"]), list(state["last"])
        self.step = list(state.get("step", [0] * len(self.epoch)))  # of a checkpoint that has none: not known

    def plot(self, *names: str, axes: Any = None) -> Any:
        """Draws values over the training steps with matplotlib, `val_` names beside those of the training.

        Args:
            *names: the names of logs; none for all but seconds. A `val_` name is drawn with the name that follows.
            axes: a list or an array with an axes for each group of names, or the one axes; None makes a figure.

        Returns:
            The list of axes.

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if a name is not logged (the message lists the logs), nothing is, or the axes are not as many as
                the groups.

        Example:
            >>> history = History()
            >>> history.on_train_begin(Event(None, "train", step=0, epoch=0))
            >>> history.on_epoch_end(Event(None, "train", step=10, epoch=0, logs={"loss": 0.5}))
            >>> (axes,) = history.plot("loss")  # needs matplotlib
            >>> axes.get_title()
            'loss'
        """
        return plot_history(self, names, axes)

    def _repr_html_(self) -> str:
        """Returns the curves for notebooks."""
        return history_html(self)

    def __getstate__(self) -> dict[str, Any]:
        """Reads all entries: their events have the trainer."""
        self._read()
        return self.__dict__

    def __repr__(self) -> str:
        return f"History(epochs={len(self.epoch)}, names={list(self.history)})"


def _saved(record: dict[str, Any]) -> dict[str, Any]:
    return {name: to_json(value) for name, value in record.items()}


def _loaded(record: dict[str, Any]) -> dict[str, Any]:
    return {name: from_json(value) for name, value in record.items()}
