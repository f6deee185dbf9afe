"""Callbacks that add values about the training to the logs: learning rate, norms, speed, memory."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from elegy.callbacks.event import Event
from elegy.callbacks.interval import PeriodicCallback
from elegy.lazy import require
from elegy.types import Every

_EVERY_STEP = Every(steps=1)
_OFTEN = Every(steps=50)


class StepMonitor(PeriodicCallback):
    """Adds values to the logs of steps."""

    batch_hooks_read = "logs"
    only_logs = True

    def __init__(self, every: Every):
        super().__init__(every)
        if every.unit == "epochs":
            raise ValueError(
                f"{type(self).__name__}(every={every!r}): it adds values to the logs of steps, and the last one of "
                "an epoch is a value of the epoch, too. Give an interval in steps, examples or seconds."
            )


def _answers(name: str, asked: str) -> bool:
    """True if a step value has the name that was asked for, or one of its names."""
    several = asked.endswith("/*") or asked == "learning_rate"
    return name == asked or (several and name.startswith(asked.removesuffix("/*") + "/"))


class _StepValues(StepMonitor):
    """Adds step values to the logs, without reading them from the device."""

    def on_train_batch_end(self, event: Event) -> None:
        """Adds the values of the step."""
        if self.due(event):
            values = event.step_logs
            for name in values.names:
                if any(_answers(name, asked) for asked in self.step_values):
                    event.log(name, functools.partial(values.__getitem__, name))


class LearningRateMonitor(_StepValues):
    """Adds the learning rate of the step to the logs, as `learning_rate`.

    It reads the state of `optax.inject_hyperparams`, also inside of a chain. If there are several, as with
    `optax.partition`, each has its own name: `learning_rate/<group>`. The name of a group of `Trainer(optimizer={...})`
    is its pattern, without `/*` at its end. Without `inject_hyperparams`, pass the schedule
    of the optimizer.

    Args:
        schedule: a function from the number of steps before to the learning rate, or None. It is called with the
            trainer's steps, so it is right only if no step is skipped (`nonfinite="skip"`, float16).
        every: the interval.

    Raises:
        TypeError: if the schedule cannot be called.
        ValueError: when training begins, if there is no schedule and the optimizer's state has no learning rate.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.ones((8, 1), np.float32)
        >>> schedule = optax.linear_schedule(0.1, 0.0, 4)
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(schedule))
        >>> monitor = LearningRateMonitor(schedule)
        >>> trainer.fit(x, x, batch_size=4, epochs=2, callbacks=[monitor], verbose=0).history["learning_rate"]
        [0.07500000298023224, 0.02500000037252903]
    """

    def __init__(self, schedule: Callable[[int], Any] | None = None, every: Every = _EVERY_STEP):
        super().__init__(every)
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a function from steps to a learning rate, not {schedule!r}.")
        self.schedule = schedule
        if schedule is None:
            self.step_values = ("learning_rate",)

    def on_train_batch_end(self, event: Event) -> None:
        """Adds the learning rate of the step."""
        if self.schedule is None:
            super().on_train_batch_end(event)
        elif self.due(event):
            event.log("learning_rate", functools.partial(self.schedule, event.step - 1))


class GradientMonitor(_StepValues):
    """Adds `grad_norm`, `update_norm` and `param_norm` to the logs: Euclidean norms over all
    parameters that are not frozen.

    The compiled step computes them: of the gradients of the whole batch, before the optimizer changes them; of the
    difference of the parameters after and before the step; and of the parameters after it.

    Args:
        per_layer: True to add the norms of each array of parameters, too: `grad_norm/dense/kernel`.
        every: the interval.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.ones((8, 1), np.float32)
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.5))
        >>> history = trainer.fit(x, x, callbacks=[GradientMonitor()], verbose=0).history
        >>> round(history["update_norm"][0] / history["grad_norm"][0], 6)
        0.5
    """

    def __init__(self, per_layer: bool = False, every: Every = _EVERY_STEP):
        super().__init__(every)
        names = ("grad_norm", "update_norm", "param_norm")
        self.step_values = (*names, *(f"{name}/*" for name in names)) if per_layer else names


class ThroughputMonitor(StepMonitor):
    """Adds `steps_per_second` and `examples_per_second` to the logs: the rates of computed steps in each interval.

    It waits until the step is computed, at the end of the first execution after each interval: steps within an
    execution have no time of their own. Evaluations, and the first interval with the compilation, are not counted.

    Args:
        every: the interval.
        tokens: the number of tokens of an example, for `tokens_per_second`; or, where it varies, a function that gets
            the event and returns how many tokens the run has seen, which is called once an interval. None to leave it
            out.

    Raises:
        TypeError: if `tokens` is neither a number nor a function, or the function does not return a number.
        ValueError: if the number is not positive and finite.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.ones((64, 1), np.float32)
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.5))
        >>> monitor = ThroughputMonitor(eg.Every(steps=4), tokens=128)
        >>> history = trainer.fit(x, x, batch_size=4, epochs=3, callbacks=[monitor], verbose=0).history
        >>> round(history["tokens_per_second"][0] / history["steps_per_second"][0])
        512
    """

    def __init__(self, every: Every = _OFTEN, tokens: float | Callable[[Event], float] | None = None):
        super().__init__(every)
        if tokens is not None and not callable(tokens):
            if isinstance(tokens, bool) or not isinstance(tokens, numbers.Real):
                raise TypeError(
                    f"ThroughputMonitor(tokens={tokens!r}): give the number of tokens of an example, or a function of "
                    "the event that returns how many tokens the run has seen."
                )
            if not 0 < tokens < math.inf:
                raise ValueError(f"ThroughputMonitor(tokens={tokens!r}): the number must be positive and finite.")
        self.tokens = tokens
        self._begin: tuple[int, int, float, float] | None = None  # steps, examples, tokens and seconds at its beginning
        self._last: Event | None = None  # the last step that was dispatched
        self._evaluation = 0.0  # the time at which the evaluation began

    def selected_batches(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The last batch of an execution: steps within one have no time of their own."""
        return range(len(sizes) - 1, len(sizes))

    def on_train_begin(self, event: Event) -> None:
        """Waits for the first interval."""
        super().on_train_begin(event)
        self._begin = self._last = None

    def on_train_batch_end(self, event: Event) -> None:
        """Adds the rates at the end of an interval."""
        self._last = event
        if not self.due(event):
            return
        now = (event.step, event.examples, self._tokens_until(event), event.seconds)
        if self._begin is not None and now[0] > self._begin[0]:
            steps, examples, tokens, seconds = (b - a for a, b in zip(self._begin, now, strict=True))
            seconds = max(seconds, 1e-9)
            self.add_rates(event, int(steps), int(examples), seconds)
            if self.tokens is not None:
                event.log("tokens_per_second", tokens / seconds)
        self._begin = now

    def _tokens_until(self, event: Event) -> float:
        if not callable(self.tokens):
            return (self.tokens or 0.0) * event.examples
        count = self.tokens(event)
        if isinstance(count, bool) or not isinstance(count, numbers.Real):
            raise TypeError(f"the function ThroughputMonitor(tokens=...) returned {count!r}, which is not a number.")
        return float(count)

    def add_rates(self, event: Event, steps: int, examples: int, seconds: float) -> None:
        """Adds the rates of an interval to the logs.

        Args:
            event: the event at its end.
            steps: its steps.
            examples: its examples.
            seconds: its seconds.
        """
        event.log("steps_per_second", steps / seconds)
        event.log("examples_per_second", examples / seconds)

    def on_train_end(self, event: Event) -> None:
        """Lets go of the last event."""
        self._begin = self._last = None

    def on_test_begin(self, event: Event) -> None:
        """Stores when a validation begins: after the steps before it are computed."""
        self._evaluation = event.elapsed if self._last is None else self._last.seconds

    def on_test_end(self, event: Event) -> None:
        """Subtracts the seconds of the validation."""
        if self._begin is not None and self._last is not None:
            steps, examples, tokens, seconds = self._begin
            self._begin = steps, examples, tokens, seconds + event.seconds - self._evaluation


class DeviceMonitor(StepMonitor):
    """Adds the memory in use to the logs, in bytes.

    `device_memory` and `device_memory_peak` are those of the device of this process with the most memory in use, on
    backends that report it (GPU and TPU; not the CPU). `host_memory` is the resident memory of this process, from
    `psutil`.

    Args:
        every: the interval.

    Raises:
        ImportError: when training begins, if psutil is not installed (`pip install "elegy[monitors]"`).

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.ones((8, 1), np.float32)
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.5))
        >>> history = trainer.fit(x, x, callbacks=[DeviceMonitor(eg.Every(steps=1))], verbose=0).history
        >>> history["host_memory"][0] > 2**20
        True
    """

    def __init__(self, every: Every = _OFTEN):
        super().__init__(every)
        self._process: Any = None

    def on_train_begin(self, event: Event) -> None:
        """Finds the process."""
        super().on_train_begin(event)
        self._process = require("psutil", "the DeviceMonitor").Process()

    def on_train_end(self, event: Event) -> None:
        """Lets go of the process."""
        self._process = None

    def on_train_batch_end(self, event: Event) -> None:
        """Adds the memory in use."""
        if not self.due(event):
            return
        event.log("host_memory", self._process.memory_info().rss)
        counts = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
        for name, key in (("device_memory", "bytes_in_use"), ("device_memory_peak", "peak_bytes_in_use")):
            if values := [stats[key] for stats in counts if key in stats]:
                event.log(name, max(values))
