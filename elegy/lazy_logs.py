"""Log values that are fetched from the device when they are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from elegy.walltime import measured


class MemberValues(float):
    """The values of a log for the members of a population: a float, which is their mean.

    Args:
        members: `float[members]`.

    Example:
        >>> value = MemberValues(np.array([1.0, 2.0]))
        >>> value, value.members
        (1.5, array([1., 2.]))
    """

    members: np.ndarray

    def __new__(cls, members: ArrayLike | list[float]) -> MemberValues:
        """Makes the mean and keeps the values."""
        values = np.asarray(members, np.float64)
        value = super().__new__(cls, values.mean())
        value.members = values
        return value

    def __getnewargs__(self) -> tuple[np.ndarray]:  # type: ignore[override]  # float's returns its own value
        """What copies and pickles are made of."""
        return (self.members,)


class LazyLogs(Mapping[str, float]):
    """Log values that stay on the device until they are read.

    The first read transfers all values at once; later reads of the same object cost nothing.

    Args:
        fetch: returns log names and scalars (device arrays, NumPy or Python numbers); called once, at the first read.
        ready: returns True if `fetch` can return without waiting for the device; None if this is unknown.
        previous: returns the logs of the step before, if it ran in the same execution.
        names: the names that `fetch` returns, if they are known before.
        wait: waits until `fetch` can return without waiting for the device; None if only `fetch` can wait.

    Attributes:
        on_read: a function that is called with the logs after the first read, or None.

    Raises:
        TypeError: at the first read, if a value is not a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> logs = LazyLogs(lambda: {"loss": jnp.float32(0.5), "accuracy": 1})
        >>> logs["loss"], list(logs), logs.copy()
        (0.5, ['loss', 'accuracy'], {'loss': 0.5, 'accuracy': 1.0})
    """

    __slots__ = (
        "_added",
        "_additions",
        "_fetch",
        "_names",
        "_previous",
        "_ready",
        "_ready_at",
        "_values",
        "_wait",
        "on_read",
    )

    def __init__(
        self,
        fetch: Callable[[], Mapping[str, Any]],
        ready: Callable[[], bool] | None = None,
        previous: Callable[[], LazyLogs] | None = None,
        names: Collection[str] | None = None,
        wait: Callable[[], object] | None = None,
    ):
        self._fetch: Callable[[], Mapping[str, Any]] | None = fetch
        self._ready, self._previous, self._wait = ready, previous, wait
        self._ready_at: float | None = None
        self._values: dict[str, float] = {}
        self._added: dict[str, Any] = {}  # added values that are not read yet
        self._additions: set[str] = set()  # the names of all that were added
        self._names = names
        self.on_read: Callable[[LazyLogs], None] | None = None

    @property
    def ready(self) -> bool | None:
        """True if the values can be read without waiting for the device; None if this is unknown."""
        if self._ready_at is not None:
            return True
        ready = None if self._ready is None else self._ready()
        if ready:
            self._ready_at = time.monotonic()
        return ready

    def wait(self) -> None:
        """Waits until the device has computed the values, where this is possible without a read."""
        if self._wait is not None and self._fetch is not None:
            self._wait()

    @property
    def ready_at(self) -> float:
        """The `time.monotonic()` at which the values were first known to be computed; waits until they are.

        Reading the values or `ready` sets this time.
        """
        self._read()
        assert self._ready_at is not None
        return self._ready_at

    @property
    def names(self) -> list[str]:
        """Returns the names; reads the values only if the names are unknown."""
        return list(self) if self._names is None or self._fetch is None else [*self._names, *self._added]

    @property
    def has_additions(self) -> bool:
        """True if values were added."""
        return bool(self._additions)

    @property
    def previous(self) -> LazyLogs | None:
        """The logs of the step before, if it ran in the same execution; None otherwise."""
        return None if self._previous is None else self._previous()

    def add(self, name: str, value: ArrayLike | Callable[[], ArrayLike]) -> None:
        """Adds a value, or replaces one that was added before.

        Args:
            name: its name.
            value: a number, an array of one element, or a function without arguments that returns one and is called
                when the value is read.

        Raises:
            ValueError: if `fetch` returns the name; at the latest when the logs are read.
        """
        fetched = self._names if self._fetch is not None else self._values.keys() - self._additions
        if name in (fetched or ()):
            raise _taken(name)
        self._additions.add(name)
        self._added[name] = value

    def check_free(self, names: Iterable[str]) -> None:
        """Checks that values of these names can be added.

        Raises:
            ValueError: if a name is known to be one of those that are fetched.
        """
        if taken := set(names) & set(self._names or ()):
            raise _taken(min(taken))

    def _read(self) -> dict[str, float]:
        if self._fetch is None and not self._added:
            return self._values
        with measured("steps"):  # the device computes them
            fetched = {} if self._fetch is None else self._fetch()
            added, self._added = self._added, {}
            if taken := fetched.keys() & added.keys():
                raise _taken(min(taken))
            self._values |= _floats({**fetched, **added})
        if self._fetch is not None:
            self._fetch = None
            self._ready_at = self._ready_at or time.monotonic()
            if self.on_read is not None:
                self.on_read(self)
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
        """Returns the values as a new dict."""
        return dict(self._read())


def _floats(logs: Mapping[str, Any]) -> dict[str, float]:
    """Reads all values from the device at once."""
    values = [value() if callable(value) else value for value in logs.values()]
    if any(isinstance(value, jax.Array) for value in values):
        values = jax.device_get(values)
    return {name: _scalar(name, value) for name, value in zip(logs, values, strict=True)}


def _taken(name: str) -> ValueError:
    return ValueError(f"the step logs {name!r} itself: add the value under another name.")


def as_value(value: Any) -> float:
    """Returns a value of a log as a float, which keeps the values of members."""
    return value if isinstance(value, MemberValues) else float(value)


def to_json(value: Any) -> Any:
    """Returns the values of members as a list; any other value as it is."""
    return value.members.tolist() if isinstance(value, MemberValues) else value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    return MemberValues(value) if isinstance(value, list) else value


def _scalar(name: str, value: Any) -> float:
    if isinstance(value, MemberValues):
        return value
    array = np.asarray(value)
    if array.size != 1:
        raise TypeError(
            f"the log {name!r} has shape {array.shape}; a log is one number. Reduce it in the step, for example with "
            "`.mean()`, or return it from the step as part of the state."
        )
    return float(array.item())
