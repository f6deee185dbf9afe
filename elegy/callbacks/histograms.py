"""Histograms of parameters for the loggers."""

from __future__ import annotations

import fnmatch

import jax
import jax.numpy as jnp

from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH, PeriodicCallback
from elegy.distributed import collect
from elegy.names import path_name, type_name
from elegy.types import Every


class WeightHistogram(PeriodicCallback):
    """Gives a histogram of each array of parameters to the loggers, as `params/<path>`.

    An execution of several steps ends where the interval ends, so the parameters are those of that step. Reading them
    waits for the device. Arrays that are not of floating-point numbers are left out.

    Args:
        every: the interval.
        pattern: which arrays, by path, as `fnmatch` reads it: `"*/kernel"`.

    Raises:
        TypeError: if `every` is not an `Every`, or the pattern is not a string.
        ValueError: at the first histogram, if no path matches the pattern; the message lists the paths.

    Example:
        >>> WeightHistogram(Every(steps=1000), pattern="*/kernel").every
        Every(steps=1000)
    """

    batch_hooks_read = "state"

    def __init__(self, every: Every = EVERY_EPOCH, pattern: str = "*"):
        super().__init__(every)
        if not isinstance(pattern, str):
            raise TypeError(f"WeightHistogram(pattern=...) takes a string, not {type_name(pattern)}.")
        self.pattern = pattern

    def on_train_batch_end(self, event: Event) -> None:
        """Logs the histograms if the interval has ended."""
        if self.due(event):
            self._log(event)

    def on_epoch_end(self, event: Event) -> None:
        """Logs the histograms if the interval has ended."""
        if self.due(event):
            self._log(event)

    def _log(self, event: Event) -> None:
        arrays = {
            path_name(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(event.trainer.state.get_params())
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        }
        found = fnmatch.filter(arrays, self.pattern)
        if not found:
            raise ValueError(
                f"WeightHistogram(pattern={self.pattern!r}) matches no array of parameters. There are: "
                f"{', '.join(arrays) or 'none'}."
            )
        for name in found:
            # Reading an array that is divided over processes is a collective operation, so all processes do it.
            event.log_histogram(f"params/{name}", collect(arrays[name]))
