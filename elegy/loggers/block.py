"""Records of several steps by columns, which loggers encode at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import orjson

from elegy.callbacks.skipped import rows_of
from elegy.loggers.record import Record, RecordKind

T = TypeVar("T")


class Block:
    """Records of steps of one epoch with the same names. All loggers of a run share it, and what they make of it.

    Args:
        kind: that of the records.
        epoch: the index of the epoch.
        seconds: for each record, the seconds since the run began.
        steps: for each record, the training steps completed; ascending.
        examples: for each record, the training examples since the run began.
        columns: `float64[records]` by name; of a population, `float64[records, members]`.

    Example:
        >>> block = Block("step", 0, [1.5, 1.5], [1, 2], [32, 64], {"loss": np.array([0.5, 0.25])})
        >>> block.names, block.columns
        (('loss',), [[0.5, 0.25]])
        >>> block.records[1]
        Record(kind='step', step=2, epoch=0, examples=64, seconds=1.5, values={'loss': 0.25})
    """

    def __init__(
        self,
        kind: RecordKind,
        epoch: int,
        seconds: Sequence[float],
        steps: Sequence[int],
        examples: Sequence[int],
        columns: Mapping[str, np.ndarray],
    ):
        self.kind: RecordKind = kind
        self.epoch, self.seconds, self.steps, self.examples = epoch, seconds, steps, examples
        self._arrays, self.names = columns, tuple(columns)
        self._made: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, *records: Record) -> Block:
        """Returns a block of some records, whose kind, epoch and names are the same."""
        kind, _, epoch, _, _, values = records[0]
        steps, examples = [one.step for one in records], [one.examples for one in records]
        block = cls(kind, epoch, [one.seconds for one in records], steps, examples, {})
        block.names = tuple(values)
        # A few records are written faster without arrays.
        columns = [[float(record.values[name]) for record in records] for name in values]
        block._made |= {"records": list(records), "columns": columns}
        return block

    @property
    def columns(self) -> list[list[float]]:
        """The values of all records, for each of `names`; of a population, the means of its members."""
        return self.shared("columns", self._lists)

    def _lists(self) -> list[list[float]]:
        means = [column if column.ndim == 1 else column.mean(axis=1) for column in self._arrays.values()]
        return [column.tolist() for column in means]

    @property
    def texts(self) -> list[list[bytes]]:
        """The values as `orjson` writes them, for each of `names`; those that are not finite are `null`."""
        return self.shared("texts", lambda: [orjson.dumps(column)[1:-1].split(b",") for column in self.columns])

    @property
    def records(self) -> list[Record]:
        """The records."""
        return self.shared("records", self._records)

    def _records(self) -> list[Record]:
        rows = rows_of(self._arrays, len(self.steps))
        fields = zip(self.steps, self.examples, self.seconds, rows, strict=True)
        return [Record(self.kind, step, self.epoch, examples, seconds, row) for step, examples, seconds, row in fields]

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns what `make` returned when it was called first with this key, as the text of the records in a file.

        Args:
            key: what it is, and all that it depends on beside the block.
            make: makes it.
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def where(self, kept: Sequence[bool]) -> Block:
        """Returns a block of some of the records.

        Args:
            kept: for each record, if it stays.
        """
        if all(kept):
            return self
        if not any(kept):
            return Block(self.kind, self.epoch, [], [], [], {})
        if self._without_arrays:
            return Block.of(*itertools.compress(self.records, kept))
        seconds = list(itertools.compress(self.seconds, kept))
        steps, examples = (list(itertools.compress(given, kept)) for given in (self.steps, self.examples))
        columns = {name: column[np.array(kept)] for name, column in self._arrays.items()}
        return Block(self.kind, self.epoch, seconds, steps, examples, columns)

    @property
    def _without_arrays(self) -> bool:
        return len(self._arrays) < len(self.names)

    def goes_on(self, other: Block) -> bool:
        """True if another block, whose steps are later, may be joined to this one."""
        return (
            self.steps[-1] < other.steps[0]
            and (self.kind, self.epoch, self.names) == (other.kind, other.epoch, other.names)
            and self._without_arrays == other._without_arrays
        )


def joined(blocks: Sequence[Block], most: int) -> list[Block]:
    """Joins blocks that follow one another: records are encoded and written faster together.

    Args:
        blocks: the blocks, none without records.
        most: the largest number of records of a joined block.

    Example:
        >>> parts = [Block("step", 0, [k], [k], [8 * k], {"loss": np.array([0.5])}) for k in (1, 2, 3)]
        >>> [block.steps for block in joined(parts, most=2)]
        [[1, 2], [3]]
    """
    series: list[list[Block]] = []
    count = 0
    for block in blocks:
        count += len(block.steps)
        if not series or count > most or not series[-1][-1].goes_on(block):
            series.append([])
            count = len(block.steps)
        series[-1].append(block)
    return [one[0] if len(one) == 1 else _joined(one) for one in series]


def _joined(blocks: Sequence[Block]) -> Block:
    first = blocks[0]
    if first._without_arrays:
        return Block.of(*(record for block in blocks for record in block.records))
    seconds = [second for block in blocks for second in block.seconds]
    steps = [step for block in blocks for step in block.steps]
    examples = [count for block in blocks for count in block.examples]
    columns = {name: np.concatenate([block._arrays[name] for block in blocks]) for name in first.names}
    return Block(first.kind, first.epoch, seconds, steps, examples, columns)


class Records(Sequence[Record]):
    """The records of blocks, as a sequence.

    Args:
        blocks: the blocks.

    Example:
        >>> block = Block("step", 0, [1.5, 1.5], [1, 2], [32, 64], {"loss": np.array([0.5, 0.25])})
        >>> [record.step for record in Records([block])], len(Records([block, block]))
        ([1, 2], 4)
    """

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = blocks

    def __len__(self) -> int:
        return sum(len(block.steps) for block in self.blocks)

    def __iter__(self) -> Iterator[Record]:
        return (record for block in self.blocks for record in block.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return list(self)[index]


def blocks_of(records: Sequence[Record]) -> Sequence[Block]:
    """Returns the blocks of `Records`; of other records, one for each.

    Args:
        records: the records.
    """
    return records.blocks if isinstance(records, Records) else [Block.of(record) for record in records]
