"""How many steps run in one execution, as the callbacks of a call allow it."""

from __future__ import annotations

import logging

from elegy.callbacks import CallbackList

logger = logging.getLogger("elegy")


def fuse_with(callbacks: CallbackList, fuse: int | str, phase: str) -> int | str:
    """Turns fusing off where callbacks look at the state after each step.

    Args:
        callbacks: the callbacks of the call.
        fuse: what was asked for, a number of steps or `"auto"`.
        phase: `"train"` or `"test"`.
    """
    readers = callbacks.state_readers(phase, undeclared=fuse == "auto")
    if readers and fuse != 1:
        level = logging.INFO if fuse == "auto" else logging.WARNING
        logger.log(
            level,
            "steps_per_execution=%r: every step runs in an execution of its own, because the batch hooks of %s may "
            "read the state after each step. Declare `batch_hooks_read = 'logs'` where they do not.",
            fuse,
            ", ".join(readers),
        )
        return 1
    return fuse
