"""A callback that traces a few training steps with JAX's profiler."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Sequence

import jax

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.callers import stacklevel_of_caller
from elegy.integers import as_integer, positive_int
from elegy.types import Every
from elegy.walltime import annotate


class Profiler(Callback):
    """Traces training steps with `jax.profiler`, for TensorBoard, XProf and Perfetto.

    The trace is in `directory/plugins/profile/<time>_step_<step>`: `*.xplane.pb` for `tensorboard --logdir directory`
    (with the plugin of `xprof`), and `*.trace.json.gz` for https://ui.perfetto.dev. Each execution of training steps is
    a step `train` with the number of its first step; `elegy: data`, `elegy: steps`, `elegy: evaluation`, `elegy:
    saving` and `elegy: callbacks` are the phases of the loop. Executions of several fused steps end where a trace
    begins and ends; `fit(steps_per_execution=1)` shows each step by itself. Between traces the loop does not wait and
    names nothing.

    Args:
        directory: where traces are written, a path or an address such as `gs://bucket/run`.
        steps: the number of training steps in a trace.
        start: the number of steps of the run before the first trace; with 0, it contains the compilation.
        every: the interval in steps from the beginning of one trace to that of the next; None for a single trace.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the interval is not in steps, or not longer than a trace, or a number is out of its range.
        RuntimeError: when a trace begins, if another one runs in the process.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.ones((64, 1), np.float32)
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.5))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     profiler = Profiler(directory, steps=2, start=4)
        ...     history = trainer.fit(x, x, batch_size=8, callbacks=[profiler], verbose=0)
        ...     len(list(Path(directory).glob("plugins/profile/*/*.xplane.pb")))
        1
    """

    batch_hooks_read = "logs"
    writes_files = True

    def __init__(
        self, directory: str | os.PathLike[str], steps: int = 5, *, start: int = 10, every: Every | None = None
    ):
        self.directory = os.fspath(directory)
        self.steps = positive_int("Profiler's steps", steps)
        first = as_integer(start)
        if first is None or first < 0:
            raise ValueError(f"Profiler(start={start!r}): give the number of steps before the trace, 0 or more.")
        self.start = first
        if every is not None and not isinstance(every, Every):
            raise TypeError(f"Profiler(every={every!r}): give an interval in steps, such as `Every(steps=1000)`.")
        if every is not None and (every.steps is None or every.steps <= self.steps):
            raise ValueError(
                f"Profiler(steps={steps}, every={every!r}): the interval must be in steps, and longer than a trace."
            )
        self.every = every
        self._first = 0  # the step at which the first trace begins
        self._traces = False

    def _acts_after(self, step: int) -> bool:
        """True if a trace begins or ends when so many steps of the trainer are done."""
        return self._begins_after(step) or self._begins_after(step - self.steps)

    def _begins_after(self, step: int) -> bool:
        since = step - self._first
        return since == 0 or (self.every is not None and since > 0 and since % int(self.every.steps or 1) == 0)

    def selected_batches(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The batches before a trace begins, and its last one."""
        return [k for k in range(len(sizes)) if self._acts_after(step + k + 1)]

    def acts_on_run(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The same: executions end there."""
        return self.selected_batches(step, examples, sizes)

    def on_train_begin(self, event: Event) -> None:
        """Finds the first step to trace."""
        self._first = event.step + self.start
        annotate(False)
        if self.start == 0:
            self._begin(event.step)

    def on_train_batch_end(self, event: Event) -> None:
        """Begins or ends a trace, when the device has computed the step."""
        if not self._acts_after(event.step):
            return
        _ = event.seconds  # waits for the step
        self._end()
        if self._begins_after(event.step):
            self._begin(event.step)

    def on_train_end(self, event: Event) -> None:
        """Ends a running trace, and warns if the run ended before the first one began."""
        self._end()
        annotate(None)
        if event.ended == "finished" and event.step < self._first:
            warnings.warn(
                f"Profiler(start={self.start}): nothing was traced, because the run had only "
                f"{event.step - self._first + self.start} steps. Choose a smaller `start`.",
                stacklevel=stacklevel_of_caller(),
            )

    def _begin(self, step: int) -> None:
        options = jax.profiler.ProfileOptions()
        # JAX names traces by the second alone, and overwrites the one before if two begin in the same second.
        options.session_id = f"{time.strftime('%Y_%m_%d_%H_%M_%S')}_step_{step}"
        jax.profiler.start_trace(self.directory, profiler_options=options)
        self._traces = True
        annotate(True)

    def _end(self) -> None:
        if self._traces:
            self._traces = False
            annotate(False)
            jax.profiler.stop_trace()
