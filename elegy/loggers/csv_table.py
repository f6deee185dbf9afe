"""A CSV file that grows by rows and by columns."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

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
        if rows and not self._ends_with_a_line():
            self.rewrite(rows)

    def append(self, rows: Sequence[Row]) -> None:
        """Writes rows with a `step`, which the row before them may have, too: then they become one row.

        Args:
            rows: names and values. The steps ascend.
        """
        merged: list[Row] = []
        last, replaces = self._last, False
        for row in rows:
            if last is not None and last["step"] == row["step"]:
                replaces = replaces or not merged
                merged = merged[:-1]
                row = {**last, **row}
            merged.append(row)
            last = row
        if not all(row.keys() <= self._known for row in merged):
            self.columns = list(dict.fromkeys([*self.columns, *(name for row in merged for name in row)]))
            self.rewrite(self._read()[1])
        if replaces:
            self._file.truncate(self._start)
            self.count -= 1
        *before, final = self._lines(merged)
        self._file.write(b"".join(before))
        self._file.flush()
        self._start = self._file.tell()
        self._file.write(final)
        self._file.flush()
        self.count += len(merged)
        self._last = merged[-1]

    def rewind(self, step: int, first: int) -> None:
        """Deletes the rows after a step, and columns that have no value then.

        Args:
            step: the last step to keep.
            first: the number of rows of earlier runs, which stay.
        """
        columns, rows = self._read()
        kept = [row for k, row in enumerate(rows) if k < first or _step(row) <= step]
        self.columns = [name for name in columns if any(row[name] for row in kept)]
        self.rewrite(kept)
        if len(kept) > first:
            last = {name: value for name, value in kept[-1].items() if value}
            self._last = {**last, "step": _step(last)}

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Writes the file anew, with the present columns."""
        self._known = set(self.columns)
        header = io.StringIO()
        if self.columns:
            csv.writer(header, delimiter=self._separator, lineterminator="\n").writerow(self.columns)
        lines = self._lines(rows)
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_bytes(b"".join([header.getvalue().encode(), *lines]))
        self._file.close()
        temporary.replace(self._path)
        self._file = self._path.open("ab")
        self.count = len(rows)
        self._start = self._file.tell() - (len(lines[-1]) if lines else 0)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _lines(self, rows: Sequence[Row]) -> list[bytes]:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self._separator, lineterminator="\n")
        writer.writerows([[row.get(name, "") for name in self.columns] for row in rows])
        return text.getvalue().encode().splitlines(keepends=True)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """The columns and the rows of the file."""
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter=self._separator, restval="")
            rows = [{name: value for name, value in row.items() if name is not None} for row in reader]
            return list(reader.fieldnames or ()), rows

    def _ends_with_a_line(self) -> bool:
        return self._path.read_bytes().endswith(b"\n")


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
