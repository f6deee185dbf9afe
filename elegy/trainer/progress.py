"""What `verbose` shows: a bar in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tqdm import tqdm

from elegy.callbacks import Callback, Event
from elegy.callbacks.deferred_logs import DeferredLogReader

# Showing the logs reads them, and reading waits for the device.
_REFRESH_SECONDS = 0.25


class ProgressBar(Callback):
    """Shows how a run goes on.

    In a terminal there is a bar an epoch, on the standard error; its logs are read a few times a second, never once a
    step. Elsewhere, and with `verbose=2`, a plain line an epoch is printed. `evaluate` and `predict` are shown alike;
    a validation within `fit` is not, its values stand in the epoch's line.

    Args:
        verbose: 0 for silence, 1 for a bar in a terminal and lines elsewhere, 2 for lines.

    Raises:
        ValueError: for another `verbose`.

    Example:
        >>> progress = ProgressBar(verbose=2)
        >>> progress.on_epoch_end(Event(None, "train", step=168, epoch=2, epochs=10, logs={"loss": 0.123}))
        epoch 3/10  step 168  loss 0.123  ...s
    """

    batch_hooks_read: Literal["logs"] = "logs"
    first_process_only = True

    def __init__(self, verbose: int = 1):
        if verbose not in (0, 1, 2):
            raise ValueError(f"verbose={verbose!r}: it must be 0 (silent), 1 (a bar in a terminal) or 2 (lines).")
        self.verbose = int(verbose)
        self._in_fit = False
        self._began = self._refreshed = time.perf_counter()
        self._bar: tqdm | None = None
        self._batches = 0
        self._reader = DeferredLogReader(_REFRESH_SECONDS)
        self._unopened: Event | None = None

    def listens(self, hook: str) -> bool:
        """Nothing is listened to with `verbose=0`, no training batches where lines are printed."""
        return self.verbose > 0 and super().listens(hook) and (hook != "on_train_batch_end" or self._shows_bars())

    def _shows_bars(self) -> bool:
        return self.verbose == 1 and sys.stderr.isatty()

    def batches_heard(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The last of an execution: the bar moves as the device does."""
        return range(len(sizes) - 1, len(sizes))

    def on_train_begin(self, event: Event) -> None:
        """Mutes the validations to come."""
        self._in_fit = True

    def on_epoch_begin(self, event: Event) -> None:
        """Opens the epoch's bar, once the last epoch's values are shown."""
        self._began = time.perf_counter()
        if self._reader.pending:
            self._unopened = event
        else:
            self._open(_epoch(event), event)

    def on_train_batch_end(self, event: Event) -> None:
        """Moves the bar."""
        self._catch_up()
        self._advance(event)

    def on_epoch_end(self, event: Event) -> None:
        """Shows the epoch's values, those of its validation included; of short epochs, while the next one runs."""
        self._catch_up()
        title, seconds = f"{_epoch(event)}  step {event.step}", time.perf_counter() - self._began
        self._reader.defer(lambda: self._finish(title, event.logs, seconds), event.logs)

    def on_train_end(self, event: Event) -> None:
        """Shows what is still to be shown; leaves a bar that the run did not complete as it is."""
        self._in_fit = False
        try:
            self._catch_up()
        finally:
            self._close()

    def on_test_begin(self, event: Event) -> None:
        """Opens a bar for `evaluate`."""
        if not self._in_fit:
            self._began = time.perf_counter()
            self._open("evaluate", event)

    def on_test_batch_end(self, event: Event) -> None:
        """Moves the bar."""
        if not self._in_fit:
            self._advance(event)

    def on_test_end(self, event: Event) -> None:
        """Shows the values of `evaluate`."""
        if not self._in_fit:
            self._finish(f"evaluate  {self._batches} batches", event.logs, time.perf_counter() - self._began)

    def on_predict_begin(self, event: Event) -> None:
        """Opens a bar for `predict`."""
        if not self._in_fit:
            self._began = time.perf_counter()
            self._open("predict", event)

    def on_predict_batch_end(self, event: Event) -> None:
        """Moves the bar."""
        if not self._in_fit:
            self._advance(event)

    def on_predict_end(self, event: Event) -> None:
        """Completes `predict`."""
        if not self._in_fit:
            self._finish(f"predict  {self._batches} batches", {}, time.perf_counter() - self._began)

    def _open(self, title: str, event: Event) -> None:
        self._close()
        self._refreshed = time.perf_counter()
        self._batches = 0
        if self._shows_bars():
            self._bar = tqdm(
                total=event.steps,
                desc=title,
                unit="batch",
                file=sys.stderr,
                mininterval=_REFRESH_SECONDS,
                dynamic_ncols=True,
            )

    def _advance(self, event: Event) -> None:
        # One event may stand for several batches.
        done = self._batches + 1 if event.batch is None else event.batch + 1
        if self._bar is not None:
            now = time.perf_counter()
            if now - self._refreshed >= _REFRESH_SECONDS:
                self._bar.set_postfix(_texts(event.logs), refresh=False)
                self._refreshed = time.perf_counter()
            self._bar.update(done - self._batches)
        self._batches = done

    def _catch_up(self) -> None:
        self._reader.flush()
        event, self._unopened = self._unopened, None
        if event is not None:
            self._open(_epoch(event), event)

    def _finish(self, title: str, logs: Mapping[str, float], seconds: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix(_texts(logs), refresh=True)
            self._close()
            return
        values = [f"{name} {text}" for name, text in _texts(logs).items()]
        print("  ".join([title, *values, f"{seconds:.1f}s"]), flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _epoch(event: Event) -> str:
    return f"epoch {event.epoch + 1}" + (f"/{event.epochs}" if event.epochs is not None else "")


def _texts(logs: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in logs.items()}
