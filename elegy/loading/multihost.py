"""Joins the batches of several processes into global batches."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from elegy.data import IterableSource
from elegy.data.batch import pad_rows, rows, take_rows
from elegy.distributed import from_first, gather, together
from elegy.loading.batch_loader import Chunks, IterableLoader, LayoutOf
from elegy.loading.chunks import BatchLayout, Chunk, resized, structure
from elegy.loading.part import WHOLE, Part
from elegy.names import array_name, differences, path_name
from elegy.strategies import Strategy
from elegy.strategies.strategy import struct_of
from elegy.types import Batch, PyTree
from elegy.waiting import RunInterrupted

_PROCESSES = "processes"
"""The key of a saved run for the data positions of several processes."""

_FAILED, _LEFT = -1, -2
"""Sent instead of the size of a batch if reading it failed, or a signal ended the wait for it."""


class MultihostLoader(IterableLoader):
    """Joins the batches of several processes, each of which has its own iterable.

    All processes read their first batch at the same time. The number of steps is that of the longest iterable. A
    process whose iterable has ended contributes masked rows to the remaining batches.

    Args:
        source: this process's iterable.
        finite: True to refuse batches with NaN or infinity.
        **options: as for `BatchLoader`.
    """

    shared = True

    def __init__(self, source: IterableSource, finite: bool = False, **options: Any):
        super().__init__(source, finite, **options)
        self._steps = _longest(self._steps)

    def _begin(self) -> Batch:
        """Reads the first batch of this process; all processes read theirs at the same time.

        Raises:
            RuntimeError: if reading failed in another process; this process raises its own error.
            ValueError: if the batches of the processes differ in more than the number of rows.
        """
        batch = together(super()._begin, f"reading the first batch of {self.what}")
        _check_alike(batch, self.what)
        return batch

    def chunks(self, layout_of: LayoutOf, strategy: Strategy, part: Part = WHOLE) -> Chunks:
        """Yields the chunks of one pass over the data of all processes; see `BatchLoader.chunks`."""
        batches, like = self._batches(part), self.view(self._first)
        return joined_chunks(batches, like, layout_of(like), strategy, part.start.batches)

    def rows_of(self, layout: BatchLayout) -> int:
        """Returns the rows of a full batch over all processes, including padding."""
        processes = jax.process_count()
        return processes * layout.rows(int(gather(np.int64(rows(self.first_batch()))).max()), processes)

    def _check_structure(self, first: PyTree, batch: Batch, number: int) -> None:
        """Checks that a later batch differs from the first only in the number of rows.

        Raises:
            ValueError: if the tree, the shape of an example or a dtype differs; the message names the array.
        """
        super()._check_structure(first, batch, number)
        if changes := differences(_examples(first), _examples(batch)):
            raise ValueError(
                f"the examples of batch {number} have another shape or dtype than those of the first batch: "
                f"{'; '.join(changes)}. Several processes join their batches into one, so only the number of rows may "
                "differ: pad the examples to one shape."
            )

    def _check_rows(self, batch: Batch, number: int) -> None:
        rows(batch, f"batch {number}: ")  # the part of one process may be empty


def _examples(batch: Batch) -> PyTree:
    """Returns the structure of the examples of a batch, without the number of rows."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], struct_of(leaf).dtype), batch)


def _longest(steps: int | None) -> int | None:
    """Returns the largest number of batches of a process; None if a process does not know its own."""
    known = gather(np.int64(-1 if steps is None else steps))
    return None if (known < 0).any() else int(known.max())


def _check_alike(batch: Batch, what: str) -> None:
    shapes = ", ".join(
        f"{path_name(path) or 'inputs'}: {array_name(leaf, ('rows', *leaf.shape[1:]))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(structure(batch))
    )
    sums = gather(np.uint32(zlib.crc32(f"{jax.tree.structure(batch)} {shapes}".encode())))
    if (sums != sums[0]).any():
        other = int(np.flatnonzero(sums != sums[0])[0])
        raise ValueError(
            f"the processes pass {what} different batches: those of process {other} and process 0 differ in more than "
            f"the number of rows. Process {jax.process_index()} has {shapes}."
        )


def joined_chunks(batches: Iterator[Batch], like: Batch, layout: BatchLayout, strategy: Strategy, first: int) -> Chunks:
    """Joins one batch of each process into a global batch, until no process has another one.

    The processes exchange the sizes of their batches, so that short batches and iterables of different lengths give
    exact results, and no process waits for one that has ended or failed.

    Args:
        batches: this process's batches.
        like: one of them, perhaps without rows; this process contributes it, masked, after its last batch.
        layout: how batches are grouped and padded.
        strategy: how data is placed.
        first: the index of the first batch.

    Raises:
        RuntimeError: if reading failed in another process; this process raises its own error.
    """
    sizes = gather(np.int64(rows(like)))
    filler, full = _with_rows(like, sizes), int(sizes.max())
    for number in itertools.count(first):
        batch, sizes = _read(batches, number)
        if not sizes.any():
            return
        full = max(full, int(sizes.max())) if layout.masked else int(sizes.max())
        share = layout.rows(full, len(sizes))
        yield _joined(filler if batch is None else batch, sizes, share, layout, strategy, number)


def _read(batches: Iterator[Batch], number: int) -> tuple[Batch | None, np.ndarray]:
    """Returns this process's next batch (`None` if it has no rows) and the sizes of all processes' batches."""
    try:
        batch = next(batches, None)
        size = 0 if batch is None else rows(batch)
    except RunInterrupted:
        gather(np.int64(_LEFT))
        raise
    except Exception:
        gather(np.int64(_FAILED))
        raise
    sizes = gather(np.int64(size))
    if (sizes == _LEFT).any():
        raise RunInterrupted
    if (sizes < 0).any():
        failed = int(np.argmax(sizes < 0))
        raise RuntimeError(f"reading batch {number} failed in process {failed}: its own error says why.")
    return batch if size else None, sizes


def _with_rows(like: Batch, sizes: np.ndarray) -> Batch:
    """Returns a batch with at least one real example, from another process if this one has none."""
    one = _padded(take_rows(like, min(rows(like), 1)), 1)
    return one if sizes.all() else jax.tree.map(lambda stack: stack[int(np.argmax(sizes))], gather(one))


def _padded(batch: Batch, to: int) -> Batch:
    """Pads a batch to `to` rows; if it is empty, `_with_rows` has to fill it."""
    if rows(batch):
        return pad_rows(batch, to)
    return jax.tree.map(lambda leaf: np.zeros((to, *leaf.shape[1:]), leaf.dtype), batch)


def with_all_places(run: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Returns a run's record with the data positions of all processes."""
    if jax.process_count() == 1 or run is None or run["data"] is None or _PROCESSES in run["data"]:
        return run
    text = np.frombuffer(json.dumps(run["data"]).encode(), np.uint8)
    sizes = gather(np.int64(text.size))
    texts = gather(np.pad(text, (0, int(sizes.max()) - text.size)))
    return {**run, "data": {_PROCESSES: [json.loads(t[:n].tobytes()) for t, n in zip(texts, sizes, strict=True)]}}


def with_own_place(run: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Returns a run's record with this process's data position; unchanged if the number of processes differs."""
    if run is None or sharing(run) != jax.process_count() or _PROCESSES not in (run["data"] or {}):
        return run
    return {**run, "data": run["data"][_PROCESSES][jax.process_index()]}


def sharing(run: Mapping[str, Any]) -> int:
    """Returns the number of processes of a saved run."""
    return len((run["data"] or {}).get(_PROCESSES, [None]))


def agreed(batch: Batch) -> Batch:
    """Returns the batch of process 0 in every process, so that all make the same first state.

    Args:
        batch: this process's batch; the batches of all processes may differ only in the number of rows.
    """
    count = int(gather(np.int64(rows(batch)))[0])
    return from_first(_padded(take_rows(batch, min(rows(batch), count)), count))


def _joined(batch: Batch, sizes: np.ndarray, share: int, layout: BatchLayout, strategy: Strategy, number: int) -> Chunk:
    count, total = share * len(sizes), (int(sizes.sum()),)
    if strategy.shares_evenly(count) and (layout.masked or (sizes == share).all()):
        data = strategy.place_part(pad_rows(batch, share), "batch", count)
        mask = (np.arange(share) < sizes[:, None]).ravel() if layout.masked else None
        return Chunk(data, "single", resized(structure(batch), count), total, number, mask=mask)
    whole = _whole(batch, sizes)
    count = layout.rows(max(rows(whole), count)) if layout.masked else rows(whole)
    mask = np.arange(count) < rows(whole) if layout.masked else None
    data = strategy.place(pad_rows(whole, count), "batch")
    return Chunk(data, "single", resized(structure(whole), count), total, number, mask=mask)


def _whole(batch: Batch, sizes: np.ndarray) -> Any:
    """Returns the rows of all processes, in every process."""
    most = int(sizes.max())
    stacks = gather(pad_rows(take_rows(batch, min(rows(batch), most)), most))
    return jax.tree.map(
        lambda stack: np.concatenate([part[:size] for part, size in zip(stack, sizes, strict=True)]), stacks
    )
