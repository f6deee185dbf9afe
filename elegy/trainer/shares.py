"""Batches of which every process brings a share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from elegy.data import pad_rows, rows, take_rows
from elegy.distributed import from_first, gather
from elegy.strategies import Strategy
from elegy.trainer.feed import Chunk, Form, resized, structure
from elegy.types import Batch


def joined_chunks(batches: Iterator[Batch], form: Form, strategy: Strategy, first: int) -> Iterator[Chunk]:
    """Joins one batch of each process into a global one, until no process has any.

    The processes tell each other the sizes of their batches, so that iterables of different lengths and short
    batches are exact, and no process waits for one that has ended.

    Args:
        batches: this process's batches.
        form: the form that the phase wants.
        strategy: how data is placed.
        first: the index of the first batch.
    """
    filler: Batch = None
    full = 0
    for number in itertools.count(first):
        batch = next(batches, None)
        sizes = gather(np.int64(0 if batch is None else rows(batch)))
        if not sizes.any():
            return
        filler = batch if filler is None else filler
        full = max(full, int(sizes.max())) if form.masked else int(sizes.max())
        yield _joined(
            filler if batch is None else batch, sizes, share_rows(form, full, len(sizes)), form, strategy, number
        )


def agreed(batch: Batch) -> Batch:
    """The first process's batch, in every process: what all make the same first state from.

    Args:
        batch: this process's own; of the same kind everywhere, but for the number of rows.
    """
    count = int(gather(np.int64(rows(batch)))[0])
    return from_first(pad_rows(take_rows(batch, min(rows(batch), count)), count))


def share_rows(form: Form, count: int, processes: int) -> int:
    """How many rows each process brings to a batch of which its own share has `count` examples."""
    unit = form.multiple // math.gcd(form.multiple, processes) if form.masked else 1
    return -(-count // unit) * unit


def _joined(batch: Batch, sizes: np.ndarray, share: int, form: Form, strategy: Strategy, number: int) -> Chunk:
    count, total = share * len(sizes), (int(sizes.sum()),)
    if strategy.shares_evenly(count) and (form.masked or (sizes == share).all()):
        data = strategy.place_part(pad_rows(batch, share), "batch", count)
        mask = (np.arange(share) < sizes[:, None]).ravel() if form.masked else None
        return Chunk(data, "single", resized(structure(batch), count), total, number, mask=mask)
    whole = _whole(batch, sizes)
    count = form.rows(max(rows(whole), count)) if form.masked else rows(whole)
    mask = np.arange(count) < rows(whole) if form.masked else None
    data = strategy.place(pad_rows(whole, count), "batch")
    return Chunk(data, "single", resized(structure(whole), count), total, number, mask=mask)


def _whole(batch: Batch, sizes: np.ndarray) -> Any:
    """The rows of all processes, in every process."""
    most = int(sizes.max())
    stacks = gather(pad_rows(take_rows(batch, min(rows(batch), most)), most))
    return jax.tree.map(
        lambda stack: np.concatenate([part[:size] for part, size in zip(stack, sizes, strict=True)]), stacks
    )
