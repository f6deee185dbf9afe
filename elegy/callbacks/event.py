"""What a callback's hook receives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np


class LazyLogs(Mapping[str, float]):
    """Log values that stay on the device until somebody reads them.

    The first reader pays for one transfer of all values; everybody who holds the same object shares it.

    Args:
        fetch: returns log names and scalars (device arrays, NumPy or Python numbers); called once, at the first read.
        ready: tells whether `fetch` need not wait; None where nobody knows.

    Raises:
        TypeError: at the first read, when a value is not a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> logs = LazyLogs(lambda: {"loss": jnp.float32(0.5), "accuracy": 1})
        >>> logs["loss"], list(logs), logs.copy()
        (0.5, ['loss', 'accuracy'], {'loss': 0.5, 'accuracy': 1.0})
    """

    __slots__ = ("_fetch", "_ready", "_values")

    def __init__(self, fetch: Callable[[], Mapping[str, Any]], ready: Callable[[], bool] | None = None):
        self._fetch: Callable[[], Mapping[str, Any]] | None = fetch
        self._ready = ready
        self._values: dict[str, float] = {}

    @property
    def ready(self) -> bool | None:
        """Whether the values can be read without waiting for the device; None where nobody knows."""
        if self._fetch is None:
            return True
        return None if self._ready is None else self._ready()

    def _read(self) -> dict[str, float]:
        if self._fetch is not None:
            logs = self._fetch()
            # A list, because JAX sorts the keys of a dict.
            values = jax.device_get(list(logs.values()))
            self._values = {name: _scalar(name, value) for name, value in zip(logs, values, strict=True)}
            self._fetch = None
        return self._values

    def __getitem__(self, name: str) -> float:
        values = self._read()
        if name not in values:
            raise KeyError(f"no log named {name!r}; logged here: {', '.join(values) or 'nothing'}")
        return values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())

    def copy(self) -> dict[str, float]:
        """Returns the values as a dict of one's own."""
        return dict(self._read())


def _scalar(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1:
        raise TypeError(
            f"the log {name!r} has shape {array.shape}; a log is one number. Reduce it in the step, for example with "
            "`.mean()`, or return it from the step as part of the state."
        )
    return float(array.item())


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A moment of a run, as a callback's hook sees it.

    Args:
        trainer: the `Trainer`; `trainer.state` is the state at this moment and stays valid when kept,
            `trainer.stop_training = True` ends the run after the running step.
        phase: what runs; inside of `fit`, validation is `"test"`.
        step: completed training steps, over the trainer's life.
        epoch: index of the running epoch (of the last one, at the train's end), over the trainer's life.
        batch: index of the batch in its epoch; None outside of the batch hooks.
        logs: log names and floats. Batch hooks see the running values of the epoch, `on_epoch_end` those of the
            whole epoch and, with the prefix `val_`, of its validation, `on_train_end` those after the run's last step.
            Reading them may wait for the device.
        epochs: the epoch count at which the run ends; None when something else ends it.
        steps: batches in an epoch; None where the source does not tell.
        batch_size: examples in a full batch; None where the source does not tell.
        examples: training examples seen by the run so far.
        seconds: time since the run's beginning.
        validates: whether the run has validation data, be it not for every epoch.
        ended: at the end of `fit`: `"interrupted"` by a signal, `"failed"` with an exception, otherwise
            `"finished"`; None before.

    Example:
        >>> Event(trainer=None, phase="train", step=10, epoch=0, batch=9, logs={"loss": 0.5}).logs["loss"]
        0.5
    """

    trainer: Any
    phase: Literal["train", "test", "predict"]
    step: int
    epoch: int
    batch: int | None = None
    logs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    examples: int = 0
    seconds: float = 0.0
    validates: bool = False
    ended: Literal["finished", "interrupted", "failed"] | None = None
