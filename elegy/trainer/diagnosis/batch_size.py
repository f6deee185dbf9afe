"""The largest batch size whose training step fits into the memory of the devices."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from elegy.data.batch import rows
from elegy.data.columns import Given
from elegy.engine import costs
from elegy.engine.executor import Executor
from elegy.engine.program import Program
from elegy.integers import as_integer, positive_int, positive_int_or_none
from elegy.loading.chunks import resized
from elegy.trainer.diagnosis.cost import cost_of
from elegy.trainer.one_batch import (
    arrays_of,
    check_trains,
    chunk_of,
    copied_state,
    has_structs,
    own_executor,
    structure_of,
)
from elegy.trainer.session import Session
from elegy.trainer.tables import bytes_text
from elegy.types import Batch

_SHARE_OF_HOST = 0.5
"""The part of the host's memory that steps on the CPU may take: data and other programs take the rest."""


def find_batch_size(session: Session, given: Given, budget: Any, multiple: Any, largest: Any, trial: bool) -> int:
    """Finds the size; see `Trainer.find_batch_size`."""
    check_trains(session, "find_batch_size", compiled=True)
    struct = structure_of("find_batch_size", given)
    unit = positive_int_or_none("multiple", multiple) or session.strategy.replicas
    most = positive_int("largest", largest) // unit
    least = -(-session.accumulate // unit)
    if budget is not None and (as_integer(budget) is None or budget <= 0):
        raise ValueError(
            f"find_batch_size(budget={budget!r}): the budget is a positive number of bytes on each device."
        )
    if most < least:
        raise ValueError(
            f"find_batch_size(largest={largest}): the smallest size is {least * unit}, a multiple of {unit}"
            + (f" of at least accumulate={session.accumulate} rows." if session.accumulate > 1 else ".")
        )
    buffer = session.planned(struct)
    executor = own_executor(session)

    def program_of(count: int) -> Program:
        return executor.program("train", buffer, resized(struct, count * unit), None)

    first = program_of(least)  # a faulty step raises its error here
    limit = int(budget) if budget is not None else memory_of(first)

    def peak(count: int) -> float:
        try:
            return cost_of(program_of(count)).peak_bytes
        except jax.errors.JaxRuntimeError as error:
            if not _is_exhausted(error):
                raise
            return float("inf")

    size = largest_below(peak, limit, least, most)
    while trial and size is not None and not _runs(session, executor, _repeated(given, struct, size * unit)):
        size = largest_below(peak, limit, least, size - 1) if size > least else None
    if size is None:
        smallest = peak(least)
        raise ValueError(
            f"a training step with {least * unit} rows takes {bytes_text(smallest)} on a device, and there are "
            f"{bytes_text(limit)}: no batch size fits. `print(trainer.cost(x, y, batch_size={least * unit}))` "
            'shows what takes it; strategy="fsdp" divides parameters and the optimizer\'s state over the devices.'
        )
    return size * unit


def largest_below(peak: Callable[[int], float], limit: float, least: int, most: int) -> int | None:
    """Returns the largest count whose peak is within a limit; None if that of the least is not.

    Peaks are nearly linear in the count, so that extrapolation takes few of them. Their order is assumed. Where they
    bend or jump, the half of what is left is next: never more than about twice the calls of a binary search.

    Args:
        peak: a function from a count to its bytes.
        limit: the bytes.
        least: the smallest count.
        most: the largest count.

    Example:
        >>> asked = []
        >>> largest_below(lambda n: asked.append(n) or 100 + 7 * n, 5000, 1, 2**16), len(asked)
        (700, 4)
    """
    peak = functools.cache(peak)
    if most < least or peak(least) > limit:
        return None
    low, high, step = least, most + 1, 1
    widths = [high - low] * 2
    while high - low > 1:
        count = min(low + step, high - 1)
        if high <= most and (low + step > high or 2 * (high - low) > widths[-2]):
            count = (low + high) // 2
        widths.append(high - low)
        rise, distance = peak(count) - peak(low), count - low
        if peak(count) > limit:
            high = count
        else:
            low = count
        step = max(int((limit - peak(low)) / rise * distance), 1) if rise > 0 else 2 * distance
    return low


def memory_of(program: Program) -> int:
    """Returns the bytes that a training step may take on each device.

    Args:
        program: a traced training step.

    Raises:
        ValueError: if neither the device nor the host reports its memory.
    """
    sharding = costs.placed_leaves(program)[0].sharding
    devices = [d for d in jax.local_devices() if d in sharding.device_set] if sharding else jax.local_devices()[:1]
    limits = [stats["bytes_limit"] for device in devices if "bytes_limit" in (stats := device.memory_stats() or {})]
    if limits:
        return int(min(limits))
    try:
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(
            "find_batch_size does not know how much memory there is: pass `budget`, in bytes on each device."
        ) from error
    return int(host * _SHARE_OF_HOST / len(devices))


def _repeated(given: Given, struct: Batch, count: int) -> Batch:
    """A batch of so many rows: those of the data, again and again; zeros if only shapes are given."""
    if has_structs(given):
        return jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), struct)
    batch = arrays_of("find_batch_size", given)
    index = np.arange(count) % rows(batch)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], batch)


def _runs(session: Session, executor: Executor, batch: Batch) -> bool:
    """True if the memory is enough for one training step."""
    try:
        chunk = chunk_of(session, batch)
        with copied_state(session, "find_batch_size", batch) as buffer:
            executor.reset(buffer, "train")
            executor.run("train", buffer, chunk, session.epoch)
            jax.block_until_ready(buffer.peek())
    except jax.errors.JaxRuntimeError as error:
        if not _is_exhausted(error):
            raise
        return False
    return True


def _is_exhausted(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
