"""What `verbose` shows: a bar while an epoch runs, and a line for each that has ended."""

from __future__ import annotations

import importlib.util
import io
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from elegy.callbacks import Callback, EarlyStopping, Event
from elegy.callbacks.deferred_logs import DeferredLogReader
from elegy.html.notebook import Output, in_notebook
from elegy.names import unique_names

_REFRESH_SECONDS = 0.25

_STOPS = 20
"""How often a bar moves at least while it waits for an epoch whose steps are all queued."""

_FORMAT = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}"

_SPARE = 9
"""Without a width tqdm formats a bar of 10 characters. One is enough."""


class ProgressBar(Callback):
    """Shows the progress of a run.

    In a terminal and in a notebook there is a bar while an epoch runs. It shows steps that are computed, and does not
    wait for others; logs are read a few times a second, never once a step. A plain line with all values takes its place
    when the epoch has ended. After an epoch of less than a quarter of a second, the next bar is shown only if its epoch
    takes longer. Elsewhere, and with `verbose=2`, only the lines are printed. `evaluate` and `predict` are
    shown in the same way; a validation within `fit` is not, its values are in the line of the epoch. Evaluations inside
    of an epoch have a line of their own. If there is only one loss, its own name is left out, because `loss` has the
    same value.

    The seconds of a line are those between the moments at which the last epoch and this one were computed, validation
    included. Together the lines have the time of the run.

    Args:
        verbose: 0 is silent; 1 shows bars in a terminal or a notebook, and lines; 2 shows lines only.
        loss_names: gives the names of the losses.

    Raises:
        ValueError: If `verbose` has another value.

    Example:
        >>> progress = ProgressBar(verbose=2)
        >>> progress.on_epoch_end(Event(None, "train", step=168, epoch=2, epochs=10, logs={"loss": 0.123}))
        epoch 3/10  step 168  loss 0.123  ...s
    """

    reads_logs = True
    batch_hooks_read = "logs"
    first_process_only = True

    def __init__(self, verbose: int = 1, loss_names: Callable[[], Sequence[str]] = tuple):
        if verbose not in (0, 1, 2):
            raise ValueError(f"verbose={verbose!r}: it must be 0 (silent), 1 (bars and lines) or 2 (lines).")
        self.verbose, self._loss_names = int(verbose), loss_names
        self._in_fit = False
        self._began = self._refreshed = time.perf_counter()
        self._bar: Any = None  # a tqdm
        self._output = Output()  # of the running cell
        self._repeated: frozenset[str] = frozenset()  # names of logs that have the value of `loss`
        self._batches = 0
        self._first: int | None = None  # the step at which a bar of all steps of a run begins
        self._queued: deque[tuple[int, Mapping[str, float]]] = deque()  # batches, and logs that are computed with them
        self._finished: float | None = None  # the seconds of the run when the last epoch was computed
        self._reader = DeferredLogReader(_REFRESH_SECONDS)
        self._stopping: list[EarlyStopping] = []
        self._unopened: Event | None = None  # the begin of an epoch that has no bar yet
        self._epoch_began = -float("inf")
        self._delay = 0.0  # seconds of an epoch without a bar
        self._step = 0  # that of the last batch
        self._running: Event | None = None  # the begin of an epoch that has not ended
        self._resumed: int | None = None  # the step at which the bar's epoch continues, until its first batch is known

    def listens(self, hook: str) -> bool:
        """Nothing is listened to with `verbose=0`, no training batches where lines are printed."""
        return self.verbose > 0 and super().listens(hook) and (hook != "on_train_batch_end" or self._shows_bars())

    def _shows_bars(self) -> bool:
        return self.verbose == 1 and (sys.stderr.isatty() or in_notebook())

    def selected_batches(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The last of an execution: the bar moves as the device does."""
        return range(len(sizes) - 1, len(sizes))

    def on_train_begin(self, event: Event) -> None:
        """Notes that evaluations are validations from now on, which are not shown."""
        self._in_fit, self._finished, self._output = True, None, Output()
        self._epoch_began = -float("inf")
        self._repeated = _repeated(self._loss_names())

    def on_epoch_begin(self, event: Event) -> None:
        """Opens the epoch's bar, once the last epoch's values are shown."""
        self._running = event
        if self._finished is None:
            self._finished = event.elapsed
        now = time.perf_counter()
        self._delay = _REFRESH_SECONDS if now - self._epoch_began < _REFRESH_SECONDS else 0.0
        self._epoch_began = now
        self._unopened, self._batches = event, 0
        if not self._reader.pending:
            self._open_if_due()

    def on_train_batch_end(self, event: Event) -> None:
        """Moves the bar."""
        self._reader.flush()
        self._open_if_due()
        self._advance(event)

    def on_epoch_end(self, event: Event) -> None:
        """Shows the epoch's values, those of its validation included; of short epochs, while the next one runs."""
        self._reader.flush()
        self._running = self._unopened = None
        title = f"{_epoch(event)}  {_step(event)}"
        self._reader.defer(lambda: self._finish(title, event.logs, lambda: self._seconds(event)), event.logs)

    def on_evaluation_end(self, event: Event) -> None:
        """Prints the values of evaluations inside of the epoch, beside the running values of the epoch."""
        title = f"{_epoch(event)}  {_step(event)}"
        self._reader.defer(lambda: self._tell([title, *self._values(event.logs)]), event.logs)

    def meet(self, callbacks: Sequence[Callback]) -> None:
        """Finds the callbacks that may stop the run."""
        self._stopping = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]

    def on_train_end(self, event: Event) -> None:
        """Shows what is still to be shown, the running values of an epoch that the run did not finish among it."""
        self._in_fit = False
        running, self._running, self._unopened = self._running, None, None
        try:
            self._reader.flush()
            if running is not None and event.ended != "failed" and event.step > running.step:
                # At max_steps, nobody knows whether an iterable without a length has more batches.
                unknown = event.epochs is None or (event.steps is None and event.step == event.last_step)
                cut = "" if unknown else " (not finished)"
                title = f"{_epoch(running)}{cut}  {_step(event)}"
                self._finish(title, event.logs, lambda: self._seconds(event))
            for one in self._stopping:
                if one.stopped_epoch is not None and not one.verbose:
                    self._tell([f"stopped by EarlyStopping: {one.reason()}"])
        finally:
            self._close()

    def on_test_begin(self, event: Event) -> None:
        """Opens a bar for `evaluate`."""
        if not self._in_fit:
            self._began, self._repeated = time.perf_counter(), _repeated(self._loss_names())
            self._open("evaluate", event)

    def on_test_batch_end(self, event: Event) -> None:
        """Moves the bar."""
        if not self._in_fit:
            self._advance(event)

    def on_test_end(self, event: Event) -> None:
        """Shows the values of `evaluate`."""
        if not self._in_fit:
            self._finish(f"evaluate  {self._batches} batches", event.logs, lambda: time.perf_counter() - self._began)

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
            self._finish(f"predict  {self._batches} batches", {}, lambda: time.perf_counter() - self._began)

    def _open(self, title: str, event: Event) -> None:
        self._close()
        self._refreshed = time.perf_counter()
        self._batches = 0
        self._queued.clear()
        total, self._first = event.steps, None
        self._resumed = event.step if event.resumed else None
        if total is None and event.phase == "train" and event.epochs is None and event.last_step is not None:
            total, self._first = event.last_step - event.step, event.step  # a stream: its epoch ends with the run
        if self._shows_bars():
            self._bar = _bar_class(self._output)(
                total=total,
                desc=title,
                bar_format=None if total is None else _FORMAT,
                unit="batch",
                file=sys.stderr,
                mininterval=_REFRESH_SECONDS,
                dynamic_ncols=True,
                leave=False,
            )

    def _advance(self, event: Event) -> None:
        # One event may stand for several batches.
        done = self._batches + 1 if event.batch is None else event.batch + 1
        if self._first is not None:
            done = event.step - self._first
        self._step = event.step
        if self._bar is not None:
            if self._resumed is not None and self._first is None:
                # The batches of the interrupted run are on the bar, but not part of its rate.
                before = done - (event.step - self._resumed)
                self._bar.initial = self._bar.n = self._bar.last_print_n = before
            self._resumed = None
            self._queued.append((done, event.logs))
            computed: Mapping[str, float] | None = None
            while self._queued and getattr(self._queued[0][1], "ready", None) is not False:
                done_there, computed = self._queued.popleft()
                self._bar.update(done_there - self._bar.n)
            if computed is not None and time.perf_counter() - self._refreshed >= _REFRESH_SECONDS:
                self._bar.set_postfix(self._fitting(self._texts(computed)), refresh=False)
                self._refreshed = time.perf_counter()
        self._batches = done

    def _wait_for_queue(self) -> None:
        """Moves the bar through what is queued, as the device computes it."""
        queued, self._queued = list(self._queued), deque()
        for done, logs in queued[:: max(1, len(queued) // _STOPS)]:
            len(logs)  # reading waits
            self._bar.update(done - self._bar.n)

    def _seconds(self, event: Event) -> float:
        """The seconds since the last epoch was computed; waits until this one is."""
        before, self._finished = self._finished or 0.0, event.seconds
        return self._finished - before

    def _open_if_due(self) -> None:
        event, seen = self._unopened, self._batches
        if event is not None and not (self._delay and time.perf_counter() - self._epoch_began < self._delay):
            self._unopened = None
            self._open(_epoch(event), event)
            if seen:  # those batches are on the bar, but not part of its rate
                self._resumed = self._step

    def _fitting(self, texts: dict[str, str]) -> dict[str, str]:
        """The first of the values, as many as the width of the terminal has room for: tqdm would cut them off."""
        columns = None if in_notebook() else self._bar.ncols
        if columns is None:
            return texts
        total = self._bar.total
        longest = self._bar.format_meter(
            total or 99999,
            total,
            3599,
            prefix=self._bar.desc,
            unit=self._bar.unit,
            rate=9999.99,
            bar_format=self._bar.bar_format,
        )
        room = columns - len(longest) + (_SPARE if total else 0)
        fitting = {}
        for name, text in texts.items():
            room -= len(f", {name}={text}")
            if room < 0:
                break
            fitting[name] = text
        return fitting

    def _finish(self, title: str, logs: Mapping[str, float], seconds: Callable[[], float]) -> None:
        if self._bar is not None:
            self._wait_for_queue()
        line = "  ".join([title, *self._values(logs), _duration(seconds())])
        in_terminal = self._shows_bars() and not in_notebook()
        self._close(leave=False)
        print(line, file=sys.stderr if in_terminal else None, flush=True)

    def _tell(self, parts: Sequence[str]) -> None:
        """Prints a line; a bar stays below it."""
        if self._bar is not None and not in_notebook():
            self._bar.write("  ".join(parts), file=sys.stderr)
        else:
            print("  ".join(parts), flush=True)

    def _values(self, logs: Mapping[str, float]) -> list[str]:
        """Returns the values of a line; reading waits for the device."""
        return [f"{name} {text}" for name, text in self._texts(logs).items()]

    def _close(self, *, leave: bool = True) -> None:
        """Closes the bar; that of an epoch which did not end stays visible."""
        if self._bar is not None:
            self._bar.leave = leave
            self._bar.close()
            self._bar = None

    def _texts(self, logs: Mapping[str, float]) -> dict[str, str]:
        return {
            name: f"{value:.4g}"
            for name, value in logs.items()
            if name not in self._repeated or f"{value:.4g}" != f"{logs[_total(name)]:.4g}"
        }


def _epoch(event: Event) -> str:
    return f"epoch {event.epoch + 1}" + (f"/{event.epochs}" if event.epochs is not None else "")


def _step(event: Event) -> str:
    """The step; of how many, if a number of steps ends the run rather than a number of epochs."""
    return f"step {event.step}" + (f"/{event.last_step}" if event.epochs is None and event.last_step else "")


def _duration(seconds: float) -> str:
    """Short epochs need more digits, or their lines would not add up to the time of the run."""
    return f"{seconds:.3f}s" if seconds < 1 else f"{seconds:.1f}s"


def _total(name: str) -> str:
    return "val_loss" if name.startswith("val_") else "loss"


def _repeated(losses: Sequence[str]) -> frozenset[str]:
    """The names under which the logs show the only loss once more."""
    if len(losses) != 1:
        return frozenset()
    _, name = unique_names(("loss", *losses))
    return frozenset((name, f"val_{name}"))


def _bar_class(output: Output) -> Any:
    """A tqdm for a terminal or a notebook.

    Args:
        output: the place for bars in a notebook.
    """
    # A notebook without ipywidgets: tqdm.auto would warn, and write every frame of a text bar to the notebook's file.
    if in_notebook() and importlib.util.find_spec("ipywidgets") is None:
        return _display_bar(output)
    from tqdm.auto import tqdm  # here, because it looks for a notebook when it is imported

    return tqdm


def _display_bar(output: Output) -> Any:
    from tqdm import tqdm

    class DisplayBar(tqdm):
        """A bar as text in a place of the cell's output, which is empty when the bar is closed."""

        def __init__(self, **options: Any):
            super().__init__(**{**options, "file": io.StringIO(), "dynamic_ncols": False})

        @staticmethod
        def status_printer(file: Any) -> Callable[[str], None]:
            return lambda text: output.show(f"<pre>{escape(text)}</pre>" if text else "")

    return DisplayBar


def bars(verbose: Any, loss_names: Callable[[], Sequence[str]]) -> tuple[ProgressBar, ...]:
    """The progress bar that `verbose` asks for, or none.

    Args:
        verbose: as for `Trainer.fit`.
        loss_names: gives the names of the losses.

    Raises:
        ValueError: if `verbose` is not 0, 1 or 2.
    """
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose must be 0, 1 or 2, not {verbose!r}.")
    return (ProgressBar(verbose, loss_names),) if verbose else ()
