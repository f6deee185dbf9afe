"""A CSV file that grows by rows and by columns."""

from __future__ import annotations

import csv
import io
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from elegy.callers import stacklevel_of_caller
from elegy.loggers.block import Block, blocks_of
from elegy.loggers.record import Record

Row = Mapping[str, Any]


class CSVTable:
    """An open CSV file. Its last row can be replaced, and a row with new columns rewrites the file.

    Args:
        path: the file; a missing one is made.
        separator: the character between values.

    Attributes:
        columns: the names of the columns.
        count: the number of rows.

    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(self, path: Path, separator: str):
        self._path, self._separator = path, separator
        self._file: IO[bytes] = path.open("ab")
        columns, rows = self._read()
        self.columns, self.count = columns, len(rows)
        self._known = set(columns)
        self._last: Row | None = None
        self._start = 0  # the position of the last row in the file
        self._end = path.stat().st_size
        if rows and not self._ends_with_a_line():
            self.rewrite(rows)

    def append(self, records: Sequence[Record]) -> None:
        """Writes a row for each record. If its step is that of the row before it, they become one row.

        Args:
            records: the records. The steps ascend.
        """
        for block in blocks_of(records):
            values = {name: column[-1] for name, column in zip(block.names, block.columns, strict=True)}
            last: Row = {"epoch": block.epoch, "step": block.steps[-1], **values}
            repeats = self._last is not None and self._last["step"] == block.steps[0]
            if repeats and len(block.steps) > 1:
                self.append(block.records[:1])
                block = block.where([k > 0 for k in range(len(block.steps))])
                repeats = False
            if repeats:
                last = {**(self._last or {}), **last}
            if not last.keys() <= self._known:
                self._file.flush()
                self.columns = list(dict.fromkeys([*self.columns, *last]))
                self.rewrite(self._read()[1]) if self._end else self._begin()
            if repeats:
                self._file.truncate(self._start)
                self._end = self._start
                self.count -= 1
            lines = self._lines([last]) if repeats else block_lines(block, tuple(self.columns), self._separator)
            self._file.write(lines)
            self._start = self._end + lines.rfind(b"\n", 0, -1) + 1
            self._end += len(lines)
            self.count += len(block.steps)
            self._last = last
        self._file.flush()

    def _begin(self) -> None:
        """Writes the header of an empty file."""
        self._known = set(self.columns)
        self._end = self._file.write(_text([self.columns], self._separator))

    def rewind(self, step: int, first: int) -> None:
        """Deletes the rows after a step, and columns that have no value then.

        Args:
            step: the last step to keep.
            first: the number of rows of earlier runs, which stay.

        Warns:
            UserWarning: if there are damaged rows, which are kept.
        """
        columns, rows = self._read()
        if damaged := sum(not row.get("step", "").isdigit() for row in rows[first:]):
            warnings.warn(
                f"{self._path}: {damaged} of {len(rows)} rows are damaged: they have no step. They are kept, and the "
                "run goes on.",
                stacklevel=stacklevel_of_caller(),
            )
        kept = [row for k, row in enumerate(rows) if k < first or _step(row) <= step]
        self.columns = [name for name in columns if any(row[name] for row in kept)]
        self.rewrite(kept)
        if len(kept) > first:
            last = {name: value for name, value in kept[-1].items() if value}
            self._last = {**last, "step": _step(last)}

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Writes the file anew, with the present columns."""
        self._known = set(self.columns)
        header = _text([self.columns] if self.columns else [], self._separator)
        lines = self._lines(rows)
        text = header + lines
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_bytes(text)
        self._file.close()
        temporary.replace(self._path)
        self._file = self._path.open("ab")
        self.count = len(rows)
        self._end = len(text)
        self._start = self._end - len(self._lines(rows[-1:]))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _lines(self, rows: Iterable[Row]) -> bytes:
        return _text([[row.get(name, "") for name in self.columns] for row in rows], self._separator)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """The columns and the rows of the file."""
        with self._path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, delimiter=self._separator, restval="")
            rows = [{name: value for name, value in row.items() if name is not None} for row in reader]
            return list(reader.fieldnames or ()), rows

    def _ends_with_a_line(self) -> bool:
        return self._path.read_bytes().endswith(b"\n")


def block_lines(block: Block, columns: tuple[str, ...], separator: str) -> bytes:
    """Returns the rows of records; the loggers of a run share them.

    Args:
        block: the records.
        columns: the names of the columns.
        separator: the character between values.

    Example:
        >>> import numpy as np
        >>> block = Block("step", 0, [1.5, 1.5], [1, 2], [32, 64], {"loss": np.array([0.5, 0.25])})
        >>> block_lines(block, ("epoch", "step", "accuracy", "loss"), ";")
        b'0;1;;0.5\\n0;2;;0.25\\n'
    """

    return block.shared(("csv", columns, separator), lambda: _rows(block, columns, separator))


def _rows(block: Block, columns: tuple[str, ...], separator: str) -> bytes:
    own: dict[str, Iterable[str]] = {"epoch": itertools.repeat(str(block.epoch)), "step": map(str, block.steps)}
    numbers = map(_numbers, block.columns, block.texts)
    own |= dict(zip(block.names, numbers, strict=True))
    rows = zip(*(own.get(name, itertools.repeat("")) for name in columns), strict=False)
    if separator in "0123456789-+.einfa":  # numbers may need quotes
        return _text(rows, separator)
    return "".join([separator.join(row) + "\n" for row in rows]).encode()


def _numbers(column: list[float], texts: list[bytes]) -> Iterable[str]:
    """The values of a column as Python writes them: orjson does so ten times as fast, except for some exponents."""
    text = b",".join(texts)
    # Beyond 1e16 and below 1e-4, orjson writes other exponents, and null for what is not finite.
    return map(repr, column) if any(part in text for part in (b"null", b"e", b"0.0000")) else text.decode().split(",")


def _text(rows: Iterable[Iterable[Any]], separator: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")  # bytes that are not text stay as they are


def has_no_rows(path: Path, separator: str) -> bool:
    """True if the file is missing, empty, or has nothing but the header of a run that wrote no row.

    Args:
        path: the file.
        separator: the character between values.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            lines = [*itertools.islice(file, 2)]
    except FileNotFoundError:
        return True
    return not lines or (len(lines) == 1 and lines[0].startswith(f"epoch{separator}step".encode()))


def _step(row: Mapping[str, str]) -> int:
    """The step of a row; of one that is not a row of ours, 0."""
    return int(row["step"]) if row.get("step", "").isdigit() else 0
