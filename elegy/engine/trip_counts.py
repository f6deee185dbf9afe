"""Decides which numbers of fused steps are constants of an executable, from the backend and the length of a pass."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TripCounts:
    """The numbers of steps in the executions of a pass.

    Args:
        full: the steps of an execution, if as many are left and nothing ends it before.
        static: the numbers of steps that have an executable of their own, whose loop has a constant number of
            iterations. All other numbers run in one executable that takes the number as an argument.
    """

    full: int
    static: tuple[int, ...] = ()


def trip_counts(
    platform: str,
    most: int,
    steps: int | None,
    *,
    interval: int | None = None,
    cut: bool = False,
    fixed: bool = False,
) -> TripCounts:
    """Chooses the numbers of steps, so that a pass needs few executions and at most two executables.

    A GPU and a TPU run a loop with a constant number of iterations on the device. If the number is an argument, XLA
    reads the condition of the loop on the host in every iteration. On a CPU both take the same time, so there one
    executable runs all numbers.

    A pass of `steps` steps needs `ceil(steps / most)` executions. All but the last have the same number of steps, which
    is as small as possible, so that the last one is not much shorter. If executions also end elsewhere, only `full` has
    an executable of its own. A single step has none: XLA would remove its loop, after which the last bits differ.

    Args:
        platform: the platform that will run the steps, such as `"gpu"`.
        most: the largest number of steps in one execution.
        steps: the number of full batches in a pass; None if unknown.
        interval: the shortest interval, in steps, at whose ends executions must end; None without intervals.
        cut: True if executions may also end at other steps.
        fixed: True to keep `most` as the number of steps in a full execution, because a user or a checkpoint gave it.

    Example:
        >>> trip_counts("gpu", 64, 938)
        TripCounts(full=63, static=(63, 56))
        >>> trip_counts("gpu", 64, 938, interval=100)
        TripCounts(full=50, static=(50,))
        >>> trip_counts("cpu", 64, 938)
        TripCounts(full=64, static=())
    """
    full = most if interval is None else min(most, interval)
    if platform == "cpu" or full == 1:
        return TripCounts(full)
    spans = [span for span in (steps, interval) if span]
    if spans and not fixed:
        calls = -(-min(spans) // full)
        full = -(-min(spans) // calls)
    regular = steps is not None and interval is None and not cut
    static = (full, steps % full) if regular and steps is not None else (full,)
    return TripCounts(full, tuple(count for count in static if count > 1))
