"""Types that every other module uses."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import numpy as np

from elegy.integers import as_integer

Array: TypeAlias = jax.Array | np.ndarray
"""An array of NumPy or JAX."""

if TYPE_CHECKING:
    Device: TypeAlias = Any  # jaxlib has no types of its own: for type checkers `jax.Device` is not a class
else:
    Device = jax.Device

PyTree: TypeAlias = Any
"""Any nesting of containers that `jax.tree` understands."""

Batch: TypeAlias = Any
"""`inputs`, `(inputs, labels)` or `(inputs, labels, sample_weight)`, exactly as given."""

Logs: TypeAlias = Mapping[str, Any]
"""Log names to scalars."""

Phase: TypeAlias = Literal["init", "train", "test", "pred"]

Hyperparameters: TypeAlias = Literal["saved", "new"]
"""Whose hyperparameters a restored optimizer has: those of the checkpoint, or those of the trainer."""
"""The phase of a run."""


@dataclasses.dataclass(frozen=True)
class Every:
    """An interval: exactly one of its fields is given.

    Args:
        steps: a number of training steps.
        epochs: a number of epochs.
        examples: a number of training examples.
        seconds: a wall-clock time in seconds.

    Raises:
        ValueError: unless exactly one field is given, and is positive.

    Example:
        >>> Every(steps=100)
        Every(steps=100)
    """

    steps: int | None = None
    epochs: int | None = None
    examples: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) != 1:
            raise ValueError(
                "Every takes exactly one of steps, epochs, examples and seconds, such as Every(steps=100), "
                f"but it got {' and '.join(given) or 'no argument'}."
            )
        ((name, value),) = given.items()
        number: float | None = as_integer(value)
        if number is None and isinstance(value, (float, np.floating)):
            number = float(value)
        if number is None or not number > 0:  # a NaN is not
            raise ValueError(f"Every({name}={value!r}): the interval must be a positive number.")
        if name != "seconds" and isinstance(number, float) and not number.is_integer():
            raise ValueError(f"Every({name}={value!r}): the interval must be a whole number.")
        object.__setattr__(self, name, number if name == "seconds" else int(number))

    def __hash__(self) -> int:
        return self._hash  # the loop uses intervals as keys

    @functools.cached_property
    def _hash(self) -> int:
        return hash(getattr(self, self.unit))  # of a number, which is the same in a process that unpickles it

    @functools.cached_property
    def unit(self) -> str:
        """The name of the field that is given."""
        return next(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)

    def __repr__(self) -> str:
        return f"Every({self.unit}={getattr(self, self.unit)!r})"

    def due(self, before: float, now: float) -> bool:
        """True if an interval ends in `(before, now]`, both counted in its unit from the run's beginning.

        Example:
            >>> Every(steps=10).due(8, 11), Every(steps=10).due(10, 11)
            (True, False)
        """
        length = getattr(self, self.unit)
        return now // length > before // length
