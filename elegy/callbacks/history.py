"""The record that `fit` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event


class History(Callback):
    """Keeps every epoch's logs. `Trainer.fit` adds one and returns it.

    The values of an epoch are read from the device when the next epoch ends, at the end of the run, or when `history`
    is read, so that the loop does not wait between epochs. If a run stops inside of an epoch, the last entry has the
    running values of that epoch, without validation. A resumed run replaces it when the epoch ends.

    Attributes:
        epoch: the index of the epoch of each entry.

    Example:
        >>> history = History()
        >>> history.on_train_begin(Event(None, "train", step=0, epoch=0))
        >>> history.on_epoch_end(Event(None, "train", step=10, epoch=0, logs={"loss": 0.5}))
        >>> history.history, history.epoch
        ({'loss': [0.5]}, [0])
    """

    reads_logs = True

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self._history: dict[str, list[float]] = {}
        self._last: list[str] = []
        self._unread: Mapping[str, float] = {}
        self._running: int | None = None  # the index of the running epoch

    @property
    def history(self) -> dict[str, list[float]]:
        """A dict of log names to lists with one float for each epoch; validation names begin with `val_`.

        The list of a name that is not logged in every epoch (`validation_freq=2`) is shorter.
        """
        self._read()
        return self._history

    def _read(self) -> None:
        if self._unread:
            self._last = list(self._unread)
            for name, value in self._unread.items():
                self._history.setdefault(name, []).append(float(value))
            self._unread = {}

    def on_train_begin(self, event: Event) -> None:
        """Starts an empty record."""
        self.epoch, self._history, self._last, self._unread = [], {}, [], {}
        self._running = None

    def on_epoch_begin(self, event: Event) -> None:
        """Stores the index of the running epoch."""
        self._running = event.epoch

    def on_epoch_end(self, event: Event) -> None:
        """Adds the epoch's values."""
        self._running = None
        self._add(event)

    def _add(self, event: Event) -> None:
        """Adds an entry, or replaces the one that a run left when it stopped inside of this epoch."""
        self._read()
        if self.epoch and self.epoch[-1] == event.epoch:
            self.epoch.pop()
            for name in self._last:
                self._history[name].pop()
        self.epoch.append(event.epoch)
        self._unread = event.logs

    def on_train_end(self, event: Event) -> None:
        """Adds the running values of an epoch that did not end, and reads the last entry."""
        # If the epoch had no batch, the event has the logs of the epoch before.
        if self._running == event.epoch and event.ended != "failed" and event.logs:
            self._add(event)
        self._read()

    def state_dict(self) -> dict[str, Any]:
        """Returns the record of the run."""
        history = {name: list(values) for name, values in self.history.items()}
        return {"history": history, "epoch": list(self.epoch), "last": list(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the record of the interrupted run."""
        self._history = {name: list(values) for name, values in state["history"].items()}
        self._unread = {}
        self.epoch, self._last = list(state["epoch"]), list(state["last"])

    def __repr__(self) -> str:
        return f"History(epochs={len(self.epoch)}, names={list(self.history)})"
