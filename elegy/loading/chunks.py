"""Groups batches into chunks, one per compiled call."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Literal

import jax
import numpy as np

from elegy.data import ArraySource, prefetch
from elegy.data.aligned import aligned_empty
from elegy.data.batch import pad_rows, rows
from elegy.data.members import PerMember, of_members
from elegy.data.plan import EpochPlan
from elegy.loading.part import WHOLE, ChunkSize, Part, as_many_as_fit
from elegy.strategies import Strategy
from elegy.strategies.strategy import struct_of
from elegy.types import Batch, PyTree

PREFETCH = 2
"""The number of gathered chunks that may be ready ahead."""

PREFETCH_BYTES = 2**20
"""Bytes. The loop itself gathers smaller chunks, while the device works: a thread would cost more. On the CPU the loop
gathers all chunks, because a thread would take cores from the step."""


BLOCK_BYTES = 2**17
"""Bytes. Single batches of a shuffled epoch are cut out of blocks of this size: one gather costs less than several."""


@dataclasses.dataclass(slots=True)  # not frozen: a frozen one takes three times as long to make, in every step
class Chunk:
    """One or more batches of the same shape, for one execution.

    Args:
        data: by `kind`, a batch, a stack of batches, or all of the data.
        kind: `"single"`, `"stacked"` or `"resident"`.
        batch: the structure of one batch.
        sizes: the number of real examples of each batch.
        first: the index of the first batch in the epoch.
        index: for resident data, the rows of each batch, `int32[capacity, rows]`; a `PerMember` if they differ between
            the members of a population.
        mask: False for rows of padding: `bool[rows]`, or `bool[capacity, rows]` for several batches.
        static: True if the number of batches is a constant of the executable.
    """

    data: PyTree
    kind: Literal["single", "stacked", "resident"]
    batch: PyTree
    sizes: tuple[int, ...]
    first: int
    index: np.ndarray | PerMember | None = None
    mask: np.ndarray | None = None
    static: bool = False

    @property
    def count(self) -> int:
        """The number of batches."""
        return len(self.sizes)


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """How the batches of a phase are grouped, padded and stored.

    Args:
        steps: the number of batches in one execution.
        masked: True to pad short batches, with a mask.
        resident: True to keep in-memory data on the device and gather batches there.
        multiple: the number of rows of masked batches is padded to a multiple of this, to divide over the replicas.
        static: the numbers of batches in one execution that have an executable of their own.
    """

    steps: int = 1
    masked: bool = False
    resident: bool = False
    multiple: int = 1
    static: tuple[int, ...] = ()

    def rows(self, count: int, processes: int = 1) -> int:
        """Returns the number of rows, including padding, of a full batch of `count` examples.

        Args:
            count: the number of examples.
            processes: the number of processes that contribute as many rows each to a batch.
        """
        unit = self.multiple // math.gcd(self.multiple, processes) if self.masked else 1
        return -(-count // unit) * unit


def capacity(chunk: Chunk) -> int:
    """Returns the number of batches for which the arrays of a chunk have room."""
    return jax.tree.leaves(chunk.data if chunk.index is None else chunk.index)[0].shape[0]


def structure(batch: Batch) -> PyTree:
    """Returns the structure, shapes and dtypes of a batch."""
    return jax.tree.map(struct_of, batch)


def resized(struct: PyTree, count: int) -> PyTree:
    """Returns the structure of a batch with another number of rows."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), struct)


def bytes_of(struct: PyTree) -> int:
    """Returns the size in bytes of arrays of this structure, at least 1."""
    return max(1, sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(struct)))


def array_chunks(
    source: ArraySource,
    plan: EpochPlan,
    layout: BatchLayout,
    strategy: Strategy,
    placed: PyTree | None,
    part: Part = WHOLE,
) -> Generator[Chunk, None, None]:
    """Cuts an epoch over arrays into chunks.

    Args:
        source: the arrays.
        plan: the batches of the epoch, from the beginning of the part.
        layout: how batches are grouped and padded.
        strategy: how data is placed.
        placed: the arrays on the device, for resident data.
        part: which batches.
    """
    order, offset = part.order, part.start.batches
    limit = plan.steps if part.limit is None else min(part.limit, plan.steps)
    short = 0 < limit == plan.steps and plan.last_size < plan.batch_size
    full = limit - 1 if short and not layout.masked else limit
    count_rows = layout.rows(plan.batch_size)
    one = resized(structure(source.batch), count_rows)
    taken = _taker(source, order)

    def singles() -> Generator[Chunk, None, None]:
        masked, several, whole = layout.masked, strategy.processes > 1, 0
        in_memory = source.on_host and not (source.lazy or several)
        if in_memory and order is not None and order.ndim == 1 and plan.batch_size == count_rows:
            whole = min(full, (plan.size - plan.done) // count_rows)
            blocks = _in_blocks(source, order[plan.done : plan.done + whole * count_rows], count_rows)
            mask, sizes = _mask(count_rows, count_rows) if masked else None, (count_rows,)
            as_is = strategy.one_device
            for first, batch in enumerate(blocks, offset):
                data = batch if as_is else strategy.place(batch, "batch")
                yield Chunk(data, "single", one, sizes, first, None, mask)
        for first in range(whole, full):
            start = plan.done + first * plan.batch_size
            size = min(plan.batch_size, plan.size - start)
            if several:
                index = np.arange(start, start + size) if order is None else order[start : start + size]
                data = _gathered(source, _filled(index, count_rows), "batch", strategy)
            else:
                batch = taken(start, start + size)
                data = strategy.place(batch if size == count_rows else pad_rows(batch, count_rows), "batch")
            mask = _mask(size, count_rows) if masked else None
            yield Chunk(data, "single", one, (size,), first + offset, None, mask)

    def chunk(first: int, count: int) -> Chunk:
        static = count in layout.static
        index, counts = plan.index_matrix(order, first, count)
        sizes = tuple(counts.tolist())
        mask = _masks(sizes, layout.steps, count_rows) if layout.masked else None
        index = _filled(_filled(index.swapaxes(0, 1), count_rows).swapaxes(0, 1), layout.steps)
        if layout.resident:
            return Chunk(placed, "resident", one, sizes, first + offset, of_members(index, 2), mask, static)
        whole = count == layout.steps and sizes[-1] == count_rows and strategy.processes == 1
        if order is None and whole:  # rows are contiguous
            start, shape = plan.batch_rows(first)[0], (count, count_rows)
            rows_ = source.slice(start, start + count * count_rows)
            data = strategy.place(jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), rows_), "chunk")
        else:
            data = _gathered(source, index, "chunk", strategy)
        return Chunk(data, "stacked", one, sizes, first + offset, None, mask, static)

    def chunks() -> Generator[Chunk, None, None]:
        first, steps, size, last_size = 0, plan.steps, plan.batch_size, plan.last_size
        while first < full:
            sizes = [size] * min(layout.steps, full - first)
            if first + len(sizes) == steps:
                sizes[-1] = last_size
            count = part.chunk_size(first, first * size, sizes)
            yield chunk(first, count)
            first += count

    every = singles() if layout.steps == 1 and not layout.resident else chunks()
    large = source.nbytes // source.size * plan.batch_size * layout.steps >= PREFETCH_BYTES
    gathers = source.on_host and not layout.resident and order is not None
    ahead = PREFETCH if source.workers or (large and gathers and jax.default_backend() != "cpu") else 0
    with source.reading():
        yield from prefetch(every, ahead) if ahead else every
        if full == limit:
            return
        start, stop = plan.batch_rows(full)
        batch = taken(start, stop)
        one = resized(one, stop - start)
        yield Chunk(strategy.place(batch, "batch"), "single", one, (stop - start,), full + offset)


def iterable_chunks(
    batches: Iterable[Batch],
    layout_of: Callable[[Batch], BatchLayout],
    strategy: Strategy,
    first: int = 0,
    like: Batch | None = None,
    chunk_size: ChunkSize = as_many_as_fit,
) -> Generator[Chunk, None, None]:
    """Groups the batches of an iterator into chunks; takes no batch beyond the current chunk.

    If a batch cannot be read, those before it are a chunk, and the error is raised after it.

    Batches may have several shapes, such as buckets of sequences by length. Each bucket (example shapes and dtypes)
    has its own layout: a short batch is padded to the largest earlier batch of its bucket.

    Args:
        batches: the batches, with arrays as leaves.
        layout_of: returns the layout for a bucket's first batch; `steps` must be the same for all.
        strategy: how data is placed.
        first: the index of the first batch.
        like: the first batch of a pass, to whose size a short batch at the beginning of a resumed run is padded.
        chunk_size: limits the size of the chunks.
    """
    for group in _groups(batches, layout_of, first, like, chunk_size):
        yield _stack(*group, strategy)
        del group  # its batches, before others are read


def _groups(
    batches: Iterable[Batch],
    layout_of: Callable[[Batch], BatchLayout],
    first: int,
    like: Batch | None,
    chunk_size: ChunkSize,
) -> Generator[tuple[list[tuple[Batch, int]], PyTree, int, BatchLayout], None, None]:
    """Pads batches, and yields those of each chunk with their sizes, their shape, the first index, and the layout."""
    begin, examples = first, 0
    layouts: dict[Any, BatchLayout] = {}
    full: dict[Any, int] = {}
    if like is not None:
        bucket = _bucket(like)
        layouts[bucket] = layout_of(like)
        full[bucket] = layouts[bucket].rows(rows(like))
    structs: dict[Any, PyTree] = {}  # one object for each shape: the executor finds programs by identity
    waiting: list[tuple[Batch, int]] = []
    layout, shape = BatchLayout(), None
    try:
        for batch in batches:
            size = rows(batch)
            bucket = _bucket(batch)
            if bucket not in layouts:
                layouts[bucket], full[bucket] = layout_of(batch), 0
            layout_here = layouts[bucket]
            count = size
            if layout_here.masked:
                count = full[bucket] = max(full[bucket], layout_here.rows(size))
                batch = pad_rows(batch, count) if size < count else batch
            if (bucket, count) not in structs:
                structs[bucket, count] = structure(batch)
            this = structs[bucket, count]
            if this is not shape:
                if waiting:
                    yield waiting, shape, first, layout
                    first, examples, waiting = first + len(waiting), examples + sum(s for _, s in waiting), []
                layout, shape = layout_here, this
            waiting.append((batch, size))
            # Called with one batch more than was read: if the result does not include it, the chunk ends here.
            sizes = [s for _, s in waiting]
            if len(waiting) == layout.steps or chunk_size(first - begin, examples, [*sizes, size]) <= len(waiting):
                yield waiting, shape, first, layout
                first, examples, waiting = first + len(waiting), examples + sum(sizes), []
    except Exception:
        if waiting:
            yield waiting, shape, first, layout  # the steps before the batch that could not be read
        raise
    if waiting:
        yield waiting, shape, first, layout


def _bucket(batch: Batch) -> Any:
    """Returns the structure of the examples of a batch, without the number of rows."""
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)


def _stack(
    waiting: list[tuple[Batch, int]], shape: PyTree, first: int, layout: BatchLayout, strategy: Strategy
) -> Chunk:
    sizes = tuple(size for _, size in waiting)
    count = rows(waiting[0][0])
    if layout.steps == 1:
        mask = _mask(sizes[0], count) if layout.masked else None
        return Chunk(strategy.place(waiting[0][0], "batch"), "single", shape, sizes, first, mask=mask)
    mask = _masks(sizes, layout.steps, count) if layout.masked else None
    batches = [batch for batch, _ in waiting] + [waiting[-1][0]] * (layout.steps - len(waiting))
    data = jax.tree.map(_stacked, *batches)
    static = len(sizes) in layout.static
    return Chunk(strategy.place(data, "chunk"), "stacked", shape, sizes, first, None, mask, static)


def _stacked(*leaves: Any) -> np.ndarray:
    """Stacks arrays of one shape and dtype in memory that the CPU backend does not copy."""
    stack = aligned_empty((len(leaves), *leaves[0].shape), leaves[0].dtype)
    return np.stack(leaves, out=stack)


def _gathered(source: ArraySource, index: np.ndarray, kind: Literal["batch", "chunk"], strategy: Strategy) -> PyTree:
    """Gathers the rows that this process provides and places them."""
    dimensions = 2 if kind == "chunk" else 1
    if index.ndim > dimensions:
        return strategy.place(of_members(source.take(index), dimensions, index.ndim), kind)
    count = index.shape[-1]
    return strategy.place_part(source.take(index[..., strategy.rows_here(count)]), kind, count)


def _taker(source: ArraySource, order: np.ndarray | None) -> Callable[[int, int], Batch]:
    """Returns a function that takes the rows of one batch in an order of all members, or of each."""
    if order is None:
        return source.slice
    if order.ndim == 1:
        return lambda start, stop: source.take(order[start:stop])
    return lambda start, stop: of_members(source.take(order[start:stop]), 1, order.ndim)


def _in_blocks(source: ArraySource, order: np.ndarray, size: int) -> Iterator[Batch]:
    """Gathers the rows of several batches at once, and cuts the batches out.

    Args:
        source: NumPy arrays.
        order: the rows of all batches, as many as a multiple of `size`.
        size: the rows of each batch.
    """
    treedef: Any = jax.tree.structure(source.batch)
    index = order.reshape(-1, size)
    count = max(1, BLOCK_BYTES * source.size // max(source.nbytes * size, 1))
    for first in range(0, len(index), count):
        leaves = treedef.flatten_up_to(source.take(index[first : first + count]))
        yield from map(treedef.unflatten, zip(*leaves, strict=True))


# The masks of equal batches are one object, by which the executor finds the one that is on the device.


@functools.lru_cache(maxsize=64)
def _mask(size: int, count: int) -> np.ndarray:
    return _fixed(np.arange(count) < size)


@functools.lru_cache(maxsize=64)
def _masks(sizes: tuple[int, ...], steps: int, count: int) -> np.ndarray:
    return _fixed(np.arange(count) < _filled(np.asarray(sizes), steps)[:, None])


def _fixed(mask: np.ndarray) -> np.ndarray:
    mask.flags.writeable = False
    return mask


def _filled(rows: np.ndarray, to: int) -> np.ndarray:
    """Repeats the last row up to `to` rows: executables take full stacks, and stop after the real batches."""
    if len(rows) == to:
        return rows
    return np.concatenate([rows, np.broadcast_to(rows[-1:], (to - len(rows), *rows.shape[1:]))])
