"""Divides the wall time of a run among its parts: compilation, data, steps, evaluation, saving, callbacks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import jax.monitoring
import jax.profiler

T = TypeVar("T")
Part = Literal["compile", "data", "steps", "evaluation", "saving", "callbacks", "other"]

PARTS: tuple[Part, ...] = ("compile", "data", "steps", "evaluation", "saving", "callbacks", "other")

# The durations that JAX reports when it traces, lowers and compiles a function; none of them contains another.
_COMPILATION = frozenset(
    f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


class WallTimes:
    """Seconds by part. Each moment belongs to one part, the innermost block that runs, so the sum is the whole time.

    An evaluation contains its own steps, data and callbacks.

    Args:
        clock: returns seconds.

    Attributes:
        seconds: the seconds of each part up to the last change of the part.

    Example:
        >>> clock = iter([0, 1, 3, 6, 10]).__next__
        >>> times = WallTimes(clock)
        >>> with times.of("callbacks"), times.of("saving"):
        ...     pass
        >>> [times.seconds[part] for part in ("other", "callbacks", "saving")]
        [1, 6, 3]
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.seconds: dict[Part, float] = dict.fromkeys(PARTS, 0)
        self._part: Part = "other"
        self._since = clock()

    @contextlib.contextmanager
    def of(self, part: Part) -> Iterator[None]:
        """Counts the time of the block, except that of blocks inside of it, as that of a part."""
        within = self._part == "evaluation" and part != "saving"
        outer = self._enter("evaluation" if within else part)
        try:
            yield
        finally:
            self._enter(outer)

    def _enter(self, part: Part) -> Part:
        now = self._clock()
        self.seconds[self._part] += now - self._since
        self._since, outer, self._part = now, self._part, part
        return outer

    def move(self, seconds: float) -> None:
        """Counts seconds that belong to the running part as compilation.

        Args:
            seconds: a time that has just passed.
        """
        self.seconds["compile"] += seconds
        self.seconds[self._part] -= seconds

    def read(self) -> dict[Part, float]:
        """Returns the seconds of each part up to now."""
        self._enter(self._part)
        return dict(self.seconds)


class _Current(threading.local):
    """The measurement of each thread: the loop of a run is one thread."""

    times: WallTimes | None = None
    annotates: bool | None = None


_current = _Current()
_NOTHING = contextlib.nullcontext()


def current() -> WallTimes | None:
    """Returns the measurement of this thread; None if nothing is measured."""
    return _current.times


def measured(part: Part, step: int | None = None) -> contextlib.AbstractContextManager[None]:
    """Counts the time of a block as that of a part, if this thread is measured, and names the block in a running trace.

    Args:
        part: the part.
        step: the number of the training step that the block runs, for the trace; None if it runs none.
    """
    times = _current.times
    if _current.annotates:
        return _annotated(part, step, times)
    return _NOTHING if times is None else times.of(part)


@contextlib.contextmanager
def _annotated(part: Part, step: int | None, times: WallTimes | None) -> Iterator[None]:
    numbered = _NOTHING if step is None else jax.profiler.StepTraceAnnotation("train", step_num=step)
    with numbered, jax.profiler.TraceAnnotation(f"elegy: {part}"), _NOTHING if times is None else times.of(part):
        yield


def annotate(annotates: bool | None) -> None:
    """Sets whether `measured` blocks of this thread are named in a running trace of `jax.profiler`.

    Args:
        annotates: True while a trace runs, False between the traces of a run, None in a run without traces.
    """
    _current.annotates = annotates


def measured_items(items: Iterator[T], part: Part) -> Iterator[T]:
    """Counts the time of waiting for each item as that of a part; the items are returned as they are if no part is."""
    if _current.times is None and _current.annotates is None:
        return items
    return _measured_items(items, part)


def _measured_items(items: Iterator[T], part: Part) -> Iterator[T]:
    end = object()
    while True:
        with measured(part):
            item = next(items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]


@contextlib.contextmanager
def measuring(times: WallTimes) -> Iterator[None]:
    """While the block runs, `measured` blocks of this thread and its compilations count in `times`.

    Args:
        times: the measurement.
    """
    here = threading.get_ident()

    def compiled(event: str, duration_secs: float, **_: str | int) -> None:
        if event in _COMPILATION and threading.get_ident() == here:
            times.move(duration_secs)

    outer, _current.times = _current.times, times
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
        _current.times = outer
