"""The policies of `Trainer(nonfinite=...)` for training steps whose loss or gradients are not finite."""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from elegy.callers import stacklevel_of_caller
from elegy.engine.state_buffer import StateBuffer
from elegy.errors import NonFiniteError
from elegy.lazy_logs import LazyLogs
from elegy.module.finite import FiniteCheck
from elegy.module.freezing import trained
from elegy.module.levels import level_of
from elegy.names import path_name

logger = logging.getLogger("elegy")

Policy = Literal["ignore", "raise", "skip", "rollback"]

DELAY = 16
"""Number of executions to wait before reading a finite check, so that the read never blocks."""

_MOST_LEAVES = 5


class Skipped(NamedTuple):
    """The number of steps that were not finite and left out.

    Args:
        steps: over all members of a population.
        by_member: of each member of a population; empty before the first, and for one run.
    """

    steps: int = 0
    by_member: tuple[int, ...] = ()

    def plus(self, bad: np.ndarray) -> Skipped:
        """Returns the number after one more step.

        Args:
            bad: True if the step was left out, `bool[]` or `bool[members]`.

        Example:
            >>> Skipped().plus(np.array([True, False])).plus(np.array([True, True]))
            Skipped(steps=3, by_member=(2, 1))
        """
        if not bad.any():
            return self
        before = self.by_member or (0,) * bad.size
        by_member = tuple(int(count + one) for count, one in zip(before, bad, strict=True)) if bad.ndim else ()
        return Skipped(self.steps + int(bad.sum()), by_member)


class NonFiniteMonitor:
    """Reads the finite checks of training steps, some executions after they were queued.

    Args:
        policy: what to do if a step is not finite.

    Raises:
        ValueError: if there is no such policy.

    Attributes:
        skipped: the number of steps read so far that were not finite.
        ends: for a population, returns the last step of each member, or None while it trains: later steps of a member
            are computed with those of the others, and dropped.
    """

    def __init__(self, policy: Any):
        if policy not in get_args(Policy):
            names = ", ".join(map(repr, get_args(Policy)))
            raise ValueError(f"nonfinite={policy!r}: it must be one of {names}.")
        self.policy: Policy = policy
        self.skipped = Skipped()
        self.ends: Callable[[], Sequence[int | None]] | None = None
        self._pending: deque[tuple[Any, int, int, Any]] = deque()
        self._told = False
        self._error: NonFiniteError | None = None

    @property
    def guards(self) -> bool:
        """True if steps are checked at all."""
        return self.policy != "ignore"

    def begin(self) -> None:
        """Begins a run: counts the checks that an earlier run left unread, without raising."""
        self.count()
        self._error, self._told = None, False

    def record(self, results: Any, step: int, epoch: int, buffer: StateBuffer) -> None:
        """Records an execution, and reads the oldest one that is due.

        Args:
            results: the StepResults that it returned.
            step: the number of steps completed before it.
            epoch: the epoch's index.
            buffer: the buffer of the state, for the names of its parameters.

        Raises:
            NonFiniteError: if a step of an execution that was read is not finite, and the policy is not `"skip"`.
        """
        self._pending.append((results, step, epoch, buffer.struct))
        if len(self._pending) > DELAY:
            self._read()
        self._complain()

    def settle(self) -> None:
        """Reads all recorded executions; waits for the device.

        Raises:
            NonFiniteError: as `record` does.
        """
        self.count()
        self._complain()

    def count(self) -> Skipped:
        """Reads all recorded executions and returns `skipped`; waits for the device."""
        while self._pending:
            self._read()
        return self.skipped

    def _complain(self) -> None:
        if self._error is not None:
            self._pending.clear()
            error, self._error = self._error, None
            raise error

    def _read(self) -> None:
        results, step, epoch, state = self._pending.popleft()
        for number, check in enumerate(results.finite_checks(), step + 1):
            bad = np.asarray(check.bad[0])
            if bad.ndim and self.ends is not None:
                bad = bad & [end is None or number <= end for end in self.ends()]
            self.skipped = self.skipped.plus(bad)
            for who, one in _failed(check, bad):
                self._note(f"{who}{describe(one, number, epoch, state)}")

    def _note(self, message: str) -> None:
        if self.policy == "skip":
            if not self._told:
                logger.warning("%s It is left out; `skipped_steps` counts such steps.", message)
            self._told = True
        elif self._error is None:
            self._error = NonFiniteError(
                f"{message} The step was left out, so the state is finite. Look at the learning rate and at the data "
                "(`check_inputs=True`); `nonfinite='skip'` goes on without such steps."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Reads what was recorded: results on a device cannot be pickled."""
        self.count()
        return self.__dict__


def _failed(check: FiniteCheck, bad: np.ndarray) -> Iterator[tuple[str, FiniteCheck]]:
    """Yields the check of each member whose step is to be reported, with its name; or that of one run."""
    if not bad.ndim:
        if bad:
            yield "", check
        return
    for member in np.flatnonzero(bad):
        yield f"member {member}: ", FiniteCheck(check.bad[:, member], check.loss[member])


class LossWatch:
    """Warns once a run if training logs that are read have a loss that is NaN or infinite.

    Args:
        active: False if another part of the run looks at the loss.
    """

    def __init__(self, active: bool):
        self._active = active

    def watch(self, logs: LazyLogs, step: int, epoch: int) -> LazyLogs:
        """Looks at logs when they are read; returns them.

        Args:
            logs: the logs of a step.
            step: the number of the step, from 1.
            epoch: the epoch's index.
        """
        if self._active:
            logs.on_read = functools.partial(self._look, step, epoch)
        return logs

    def _look(self, step: int, epoch: int, logs: LazyLogs) -> None:
        loss = logs.get("loss", 0.0)
        if not self._active or math.isfinite(loss):
            return
        self._active = False
        before = logs.previous
        while before is not None and not math.isfinite(before.get("loss", 0.0)):
            step, before = step - 1, before.previous
        warnings.warn(
            f"the loss is {loss} at step {step} of epoch {epoch + 1}, or since an earlier one; training goes on. "
            "`fit(check_inputs=True)` finds NaN and infinity in the data. "
            "`Trainer(nonfinite='raise')` ends a run at such a step and names the parameters whose gradients are not "
            "finite, 'skip' leaves the step out, and the callback `TerminateOnNaN` stops the run.",
            RuntimeWarning,
            stacklevel=stacklevel_of_caller(),
        )


def check_level(policy: Policy, buffer: StateBuffer) -> None:
    """Checks that the finite check can be part of the training step.

    Raises:
        ValueError: if the step is at the core level, which computes its gradients itself.
    """
    if policy != "ignore" and level_of(buffer.cls, "train") == "core":
        raise ValueError(
            f"nonfinite={policy!r} guards gradients and optimizer, but {buffer.cls.__name__}.train_step does both "
            "itself. Check there (`optax.apply_if_finite`), or write `managed_train_step`."
        )


def describe(check: FiniteCheck, step: int, epoch: int, state: Any) -> str:
    """Describes a step that is not finite for an error message.

    Args:
        check: the check of the step.
        step: the number of the step, counted from 1.
        epoch: the epoch's index.
        state: the structure of the state.
    """
    params = jax.tree_util.tree_leaves_with_path(trained(state, state.get_params()))
    bad = [path_name(path) for (path, _), wrong in zip(params, check.bad[1:], strict=True) if wrong]
    more = f" and {len(bad) - _MOST_LEAVES} more" if len(bad) > _MOST_LEAVES else ""
    where = f"the gradients of {', '.join(bad[:_MOST_LEAVES])}{more} hold NaN or infinity" if bad else "no gradient is"
    return f"step {step}, in epoch {epoch + 1}, is not finite: the loss is {float(check.loss)}, {where}."
