"""Batches of which every process brings a share."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from elegy.data import pad_rows, rows, take_rows
from elegy.distributed import from_first, gather, together
from elegy.loading.chunks import BatchLayout, Chunk, resized, structure
from elegy.names import array_name, path_name
from elegy.strategies import Strategy
from elegy.types import Batch

_PROCESSES = "processes"
"""Where a saved run holds the places of several processes."""


def longest(steps: int | None) -> int | None:
    """The number of batches of the longest share, where every process knows its own."""
    known = gather(np.int64(-1 if steps is None else steps))
    return None if (known < 0).any() else int(known.max())


def first_of_share(read: Callable[[], Batch], what: str) -> Batch:
    """Reads the first batch of this process's share.

    Args:
        read: reads it.
        what: the call, for messages.

    Raises:
        RuntimeError: when reading failed in another process; where it failed, its own error is raised.
        ValueError: when the batches of the processes differ in more than the number of rows.
    """
    batch = together(read, f"reading the first batch of {what}")
    form = ", ".join(
        f"{path_name(path) or 'inputs'}: {array_name(leaf, ('rows', *leaf.shape[1:]))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(structure(batch))
    )
    forms = gather(np.uint32(zlib.crc32(f"{jax.tree.structure(batch)} {form}".encode())))
    if (forms != forms[0]).any():
        other = int(np.flatnonzero(forms != forms[0])[0])
        raise ValueError(
            f"the processes feed {what} batches of different forms: process {other} and process 0 differ in more than "
            f"the number of rows. In process {jax.process_index()} it is {form}."
        )
    return batch


def joined_chunks(
    batches: Iterator[Batch], like: Batch, form: BatchLayout, strategy: Strategy, first: int
) -> Iterator[Chunk]:
    """Joins one batch of each process into a global one, until no process has any.

    The processes tell each other the sizes of their batches, so that iterables of different lengths and short
    batches are exact, and no process waits for one that has ended or failed.

    Args:
        batches: this process's batches.
        like: one of them, perhaps without rows; what this process brings once it has no more.
        form: the form that the phase wants.
        strategy: how data is placed.
        first: the index of the first batch.

    Raises:
        RuntimeError: when reading failed in another process; where it failed, its own error is raised.
    """
    sizes = gather(np.int64(rows(like)))
    filler, full = _with_rows(like, sizes), int(sizes.max())
    for number in itertools.count(first):
        batch, sizes = _read(batches, number)
        if not sizes.any():
            return
        full = max(full, int(sizes.max())) if form.masked else int(sizes.max())
        share = share_rows(form, full, len(sizes))
        yield _joined(filler if batch is None else batch, sizes, share, form, strategy, number)


def _read(batches: Iterator[Batch], number: int) -> tuple[Batch | None, np.ndarray]:
    """This process's next batch, `None` where it has no row, and the sizes of all."""
    try:
        batch = next(batches, None)
        size = 0 if batch is None else rows(batch)
    except Exception:
        gather(np.int64(-1))
        raise
    sizes = gather(np.int64(size))
    if (sizes < 0).any():
        failed = int(np.argmax(sizes < 0))
        raise RuntimeError(f"reading batch {number} failed in process {failed}: its own error says why.")
    return batch if size else None, sizes


def _with_rows(like: Batch, sizes: np.ndarray) -> Batch:
    """One real example, another process's where this one has none."""
    one = _padded(take_rows(like, min(rows(like), 1)), 1)
    return one if sizes.all() else jax.tree.map(lambda stack: stack[int(np.argmax(sizes))], gather(one))


def _padded(batch: Batch, to: int) -> Batch:
    """A batch of `to` rows; where there is none to repeat, others' will be used."""
    if rows(batch):
        return pad_rows(batch, to)
    return jax.tree.map(lambda leaf: np.zeros((to, *leaf.shape[1:]), leaf.dtype), batch)


def with_all_places(run: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A run's record, with the place in the data of every process that brings a share: each has its own."""
    if jax.process_count() == 1 or run is None or run["data"] is None or _PROCESSES in run["data"]:
        return run
    text = np.frombuffer(json.dumps(run["data"]).encode(), np.uint8)
    sizes = gather(np.int64(text.size))
    texts = gather(np.pad(text, (0, int(sizes.max()) - text.size)))
    return {**run, "data": {_PROCESSES: [json.loads(t[:n].tobytes()) for t, n in zip(texts, sizes, strict=True)]}}


def with_own_place(run: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A run's record, with this process's place in the data; as it is where other processes saved it."""
    if run is None or sharing(run) != jax.process_count() or _PROCESSES not in (run["data"] or {}):
        return run
    return {**run, "data": run["data"][_PROCESSES][jax.process_index()]}


def sharing(run: Mapping[str, Any]) -> int:
    """How many processes shared the data of a run that was saved."""
    return len((run["data"] or {}).get(_PROCESSES, [None]))


def agreed(batch: Batch) -> Batch:
    """The first process's batch, in every process: what all make the same first state from.

    Args:
        batch: this process's own; of the same kind everywhere, but for the number of rows.
    """
    count = int(gather(np.int64(rows(batch)))[0])
    return from_first(_padded(take_rows(batch, min(rows(batch), count)), count))


def share_rows(form: BatchLayout, count: int, processes: int) -> int:
    """How many rows each process brings to a batch of which its own share has `count` examples."""
    unit = form.multiple // math.gcd(form.multiple, processes) if form.masked else 1
    return -(-count // unit) * unit


def _joined(batch: Batch, sizes: np.ndarray, share: int, form: BatchLayout, strategy: Strategy, number: int) -> Chunk:
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
