"""The argument of a callback's hooks."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike

from elegy.callbacks.items import Item, Kind, checked
from elegy.callbacks.skipped import SkippedSteps
from elegy.lazy_logs import LazyLogs
from elegy.names import type_name

if TYPE_CHECKING:  # an editor completes `event.trainer.`; a callback does not import the trainer
    from elegy.trainer import Trainer


T = TypeVar("T")

_NUMBERS = (int, float, complex, np.number, np.bool_, np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """The trainer, the counters and the logs when a hook is called.

    Args:
        trainer: the `Trainer`. `trainer.state` is the current state, and stays valid when you keep it.
            `trainer.stop_training = True` ends the run after the running step.
        phase: `"train"`, `"test"` (evaluation, and validation inside of `fit`) or `"predict"`.
        step: training steps completed over the trainer's life.
        epoch: index of the running epoch (at the end of `fit`, of the last one), over the trainer's life.
        batch: index of the batch in its epoch, in `on_evaluation_end` of the last one before it; None in other hooks.
        logs: log names and floats. Batch hooks see the running values of the epoch, `on_epoch_end` those of the
            whole epoch and, with the prefix `val_`, of its validation, `on_train_end` those after the run's last step.
            Reading them may wait for the device.
        epochs: the epoch count at which the run ends; None if a number of steps or a time ends it.
        last_step: the number of completed steps at which `max_steps` ends the run; None without it.
        steps: batches in an epoch; None if unknown.
        batch_size: examples in a full batch; None if unknown.
        examples: training examples seen by the run so far.
        elapsed: seconds from the run's beginning to the call of the hook. The device may be far behind: see `seconds`.
        evaluations: for each data set of the validation, the beginning of the names of its values in the logs of an
            epoch: `"val_"`, or `"val_<name>_"`.
        evaluated: in `on_epoch_end`, those of `evaluations` that ran after this epoch; in `on_evaluation_end`, those
            that ran after this step.
        evaluation: in the `test` hooks inside of `fit`, the one of `evaluations` that runs.
        ended: at the end of `fit`, of an evaluation and of a prediction: `"interrupted"` by a signal, a `Timer` or the
            end of an iteration over `predict_iter`, `"failed"` with an exception, otherwise `"finished"`; None in other
            hooks. A resumed run begins an interrupted evaluation anew.
        resumed: in `on_epoch_begin`, True if batches of the epoch were trained before, by the interrupted run or
            before this run went back to a checkpoint.
        is_current: False if later steps of the same execution have already changed `trainer.state`.
        skipped: in `on_train_batch_end`, the steps before this one for which no hook was called; None for none.

    Example:
        >>> Event(trainer=None, phase="train", step=10, epoch=0, batch=9, logs={"loss": 0.5}).logs["loss"]
        0.5
    """

    trainer: Trainer[Any]
    phase: Literal["train", "test", "predict"]
    step: int
    epoch: int
    batch: int | None = None
    logs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    epochs: int | None = None
    last_step: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    examples: int = 0
    elapsed: float = 0.0
    evaluations: tuple[str, ...] = ()
    evaluated: tuple[str, ...] = ()
    evaluation: str | None = None
    ended: Literal["finished", "interrupted", "failed"] | None = None
    resumed: bool = False
    is_current: bool = True
    skipped: SkippedSteps | None = dataclasses.field(default=None, repr=False, compare=False)
    _step_logs: Callable[[], LazyLogs] | None = dataclasses.field(default=None, repr=False, compare=False)
    _added: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _receive: Callable[[Callable[[], Item]], None] | None = dataclasses.field(default=None, repr=False, compare=False)
    _shared: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _made: float = dataclasses.field(default_factory=time.monotonic, repr=False, compare=False)

    @property
    def validates(self) -> bool:
        """True if the run has validation data, even if it does not validate after every epoch."""
        return bool(self.evaluations)

    @property
    def step_logs(self) -> LazyLogs:
        """The step's own values that callbacks of the run declare in `step_values`, in `on_train_batch_end`.

        They stay on the device until they are read.

        Raises:
            RuntimeError: in other hooks, and if no callback declares any.
        """
        if self._step_logs is None:
            raise RuntimeError(
                "this event has no step_logs: on_train_batch_end has them if a callback of the run declares which, "
                "for example `step_values = ('logs', 'grad_norm')` in its class."
            )
        return self._step_logs()

    def log(self, name: str, value: ArrayLike | Callable[[], ArrayLike]) -> None:
        """Adds a value to the logs: to those of the step in batch hooks of the training, to those of the evaluation in
        `test` hooks and `on_evaluation_end`, otherwise to those of the epoch. The last value that the steps of an epoch
        add is one of its values, too; the same is true of the batches of an evaluation.

        `event.logs` has the value from now on, or, in a hook without logs, those of the next hook that has logs.
        Loggers, `History`, `EarlyStopping` and `ModelCheckpoint` read the logs after all callbacks that may add
        values, wherever they stand in the list.

        Args:
            name: the name in the logs.
            value: a number, an array of one element, which may stay on the device, or a function without arguments
                that returns one and is called when the value is read.

        Raises:
            TypeError: if the name is not a string, or the value is none of these.
            ValueError: if the step logs a value of this name itself.
            RuntimeError: in a prediction, which has no logs, and in `on_train_end`, when all logs are complete.

        Example:
            >>> event = Event(None, "train", step=10, epoch=0, logs=LazyLogs(lambda: {"loss": 0.5}))
            >>> event.log("learning_rate", 0.1)
            >>> event.logs
            {'loss': 0.5, 'learning_rate': 0.1}
        """
        if self.phase == "predict":
            raise RuntimeError(f"event.log({name!r}, ...): a prediction has no logs.")
        if self.ended is not None and self.phase == "train":
            raise RuntimeError(
                f"event.log({name!r}, ...) at the end of fit: the logs of the last step and of the last epoch are "
                "complete. Call it in on_epoch_end, or in the batch hooks; event.log_text and the other methods for "
                "what is not a number work here."
            )
        if not isinstance(name, str) or not name:
            raise TypeError(f"event.log takes the name of the value and the value, but the name is {name!r}.")
        if callable(value):
            value = functools.cache(value)  # read for the step and for the epoch
        elif not isinstance(value, _NUMBERS) or np.size(value) != 1 or np.iscomplexobj(value):
            raise TypeError(f"event.log({name!r}, ...) takes one real number, not {type_name(value)}.")
        if isinstance(self.logs, LazyLogs):
            self.logs.add(name, value)
        self._added[name] = value

    def log_text(self, name: str, text: str) -> None:
        """Gives a text to the loggers of the run.

        This and the other methods for what is not a number reach the loggers at once, in `fit` only. In an evaluation
        inside of `fit`, the name begins as those of its values do (`val_`). Without a logger, nothing is computed.

        Args:
            name: the name in the loggers.
            text: the text; some loggers show Markdown.

        Raises:
            TypeError: if an argument is not a string.
        """
        self._log_item("text", name, text)

    def log_image(self, name: str, image: ArrayLike) -> None:
        """Gives an image to the loggers of the run.

        Args:
            name: the name in the loggers.
            image: shape `(height, width)` or `(height, width, channels)` with 1, 3 or 4 channels, of uint8, or of
                floats from 0 to 1. Other floats are clipped.

        Raises:
            TypeError: if the dtype is another one.
            ValueError: if the shape is another one.
        """
        self._log_item("image", name, image)

    def log_figure(self, name: str, figure: Any) -> None:
        """Gives a figure to the loggers of the run, which draw it at once; close it afterwards.

        Args:
            name: the name in the loggers.
            figure: a Matplotlib figure.

        Raises:
            TypeError: if it is not a figure.
        """
        self._log_item("figure", name, figure)

    def log_histogram(self, name: str, values: ArrayLike) -> None:
        """Gives the values of a histogram to the loggers of the run.

        Args:
            name: the name in the loggers.
            values: real numbers, of any shape. Reading them may wait for the device.

        Raises:
            TypeError: if they are not real numbers.
        """
        self._log_item("histogram", name, values)

    def log_artifact(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        """Gives a file or a directory to the loggers of the run, which copy or upload it.

        Args:
            path: the file.
            name: the name in the loggers; None for that of the file.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        self._log_item("artifact", os.path.basename(os.fspath(path)) if name is None else name, path)

    def log_checkpoint(self, path: object) -> None:
        """Tells the loggers of the run the place of a checkpoint, as `ModelCheckpoint` does.

        Args:
            path: its path or address.
        """
        self._log_item("checkpoint", "checkpoint", path)

    def _log_item(self, kind: Kind, name: str, value: Any) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"event.log_{kind} takes the name of what it logs, but the name is {name!r}.")
        if self._receive is not None:
            prefix, in_epoch = self.evaluation or "", self.phase == "train" and self.batch is not None
            where = (self.step, self.epoch, in_epoch, in_epoch and bool(self.evaluated))
            self._receive(lambda: Item(kind, f"{prefix}{name}", checked(kind, name, value), *where))

    @property
    def added(self) -> tuple[str, ...]:
        """The names of the values that callbacks have added in this hook.

        Example:
            >>> event = Event(None, "train", step=10, epoch=0)
            >>> event.log("learning_rate", 0.1)
            >>> event.added
            ('learning_rate',)
        """
        return tuple(self._added)

    @property
    def evaluation_logs(self) -> dict[str, float]:
        """The values of the evaluations that ran right before `on_evaluation_end` or `on_epoch_end`, and those that
        callbacks added in the same hook; empty if none ran.

        Example:
            >>> logs = {"loss": 0.5, "val_loss": 0.6}
            >>> Event(None, "train", 10, 0, logs=logs, evaluations=("val_",), evaluated=("val_",)).evaluation_logs
            {'val_loss': 0.6}
        """
        if not self.evaluated:
            return {}
        mine = {name: value for name, value in self.logs.items() if self.evaluation_of(name) in self.evaluated}
        return {**mine, **{name: self.logs[name] for name in self._added}}

    def evaluation_of(self, name: str) -> str | None:
        """Returns the one of `evaluations` that a log belongs to; None for others.

        Args:
            name: the log's name.

        Example:
            >>> Event(None, "train", 10, 0, evaluations=("val_", "val_far_")).evaluation_of("val_far_loss")
            'val_far_'
        """
        return max((prefix for prefix in self.evaluations if name.startswith(prefix)), key=len, default=None)

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns what the first callback made of this event under a key, so that further ones need not make it.

        Args:
            key: what it is, and all that it depends on beside the event.
            make: makes it.

        Example:
            >>> event = Event(None, "train", step=10, epoch=0, logs={"loss": 0.5})
            >>> event.shared("text", lambda: f"loss {event.logs['loss']}"), event.shared("text", lambda: "not called")
            ('loss 0.5', 'loss 0.5')
        """
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    @property
    def seconds(self) -> float:
        """Seconds from the run's beginning until the device had computed `logs`; waits for the device.

        Steps run asynchronously, so a hook is called before its step is done. In hooks without logs, equal to
        `elapsed`.
        """
        computed = self.logs.ready_at if isinstance(self.logs, LazyLogs) else self._made
        return self.elapsed + max(computed - self._made, 0.0)
