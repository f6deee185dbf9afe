"""What `restore` and `load_weights` were given before the first state exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class PendingLoads:
    """Loads that wait for the first state, in the order in which they will run.

    A load that the state refused stays, so that a run which is started again does not train from other values
    without a word; the next `restore` or `load_weights` takes its place.

    Args:
        loads: functions without arguments that put values into the state of a trainer.
        refused: the load that failed at the last attempt.

    Example:
        >>> pending = PendingLoads().with_weights(lambda: print("a")).with_weights(lambda: 1 / 0)
        >>> try:
        ...     pending.run()
        ... except ZeroDivisionError:
        ...     pending = pending.with_weights(lambda: print("b"))
        a
        >>> pending.run()
        a
        b
    """

    loads: tuple[Callable[[], None], ...] = ()
    refused: list[Callable[[], None]] = dataclasses.field(default_factory=list, repr=False)

    def with_checkpoint(self, load: Callable[[], None]) -> PendingLoads:
        """A checkpoint replaces the whole state, and with it every load before it."""
        return PendingLoads((load,))

    def with_weights(self, load: Callable[[], None]) -> PendingLoads:
        """Weights follow the loads before them, except one that was refused."""
        return PendingLoads((*(one for one in self.loads if one not in self.refused), load))

    def run(self) -> None:
        """Runs all loads; an exception leaves the one that raised it marked as refused."""
        self.refused.clear()
        for load in self.loads:
            try:
                load()
            except Exception as error:
                self.refused.append(load)
                error.add_note(
                    "It was given before the first state existed, so it is tried again at the next call. Another "
                    "`restore` or `load_weights` takes its place."
                )
                raise
