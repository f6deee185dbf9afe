"""Data sets of Hugging Face: columns that are read batch by batch, and streams whose rows are batched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from elegy.data.lazy_rows import LazyRows
from elegy.data.numeric import as_numeric
from elegy.data.tables import missing_in
from elegy.lazy import is_instance_of


def is_dataset(value: Any) -> bool:
    """True if a value is a `datasets.Dataset`.

    Example:
        >>> is_dataset(np.zeros(3))
        False
    """
    return is_instance_of(value, "datasets", "Dataset")


def is_stream(value: Any) -> bool:
    """True if a value is a `datasets.IterableDataset`.

    Example:
        >>> is_stream(np.zeros(3))
        False
    """
    return is_instance_of(value, "datasets", "IterableDataset")


def dataset_names(dataset: Any) -> list[str]:
    """Returns the names of the columns that the rows of a data set have."""
    if dataset.format["type"] == "custom" and len(dataset):  # a transformation may make other columns
        return list(dataset[:1])
    return list(dataset.format["columns"])


def dataset_columns(dataset: Any, names: Sequence[str]) -> dict[str, ColumnRows]:
    """Returns columns of a data set by name. Only these columns are read and decoded.

    Raises:
        TypeError: if a column does not contain numbers; the message names it.
        ValueError: if a column has missing values or cells of different shapes, or the data set has no rows.
    """
    if not len(dataset):
        raise ValueError("the data set of Hugging Face has 0 rows, but there must be at least one example.")
    if dataset.format["type"] != "custom":
        for name in names:
            _refuse_missing(dataset, name)
        dataset = dataset.with_format("numpy", columns=list(names))
    reader = _Reader(dataset)
    return {name: ColumnRows(reader, name, 0, len(dataset)) for name in names}


def _refuse_missing(dataset: Any, name: str) -> None:
    """Refuses missing values, which the library would make NaN, of another dtype than the column's."""
    if missing_in(dataset.data.column(name)):  # of all rows of the file, which the data set may be a selection of
        count = missing_in(dataset.with_format("arrow", columns=[name])[:].column(name))
        if count:
            raise ValueError(
                f"the column {name!r} has {count} missing values in {len(dataset)} rows, and nothing says what they "
                "stand for. Drop these rows with `dataset.filter`, or replace the values with `dataset.map`; to ignore "
                "rows whose label is missing, fill it and give them the sample_weight 0."
            )


class _Reader:
    """Reads rows of a data set; those of the last request are kept, because the columns ask one after another."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._last: tuple[Any, dict[str, Any]] = None, {}

    def read(self, rows: slice | np.ndarray) -> dict[str, Any]:
        asked = (rows.start, rows.stop) if isinstance(rows, slice) else rows.tobytes()
        # Threads that read training and validation rows share this reader, so both are set at once.
        last, found = self._last
        if asked != last:
            found = self.dataset[rows if isinstance(rows, slice) else rows.tolist()]
            self._last = asked, found
        return found


class ColumnRows(LazyRows):
    """A column of a data set of Hugging Face.

    Args:
        reader: reads the rows of the data set.
        name: the name of the column.
        start: the first row.
        stop: the row after the last.
    """

    def __init__(self, reader: _Reader, name: str, start: int, stop: int):
        self.reader, self.name, self.start = reader, name, start
        first = self._array(reader.read(slice(0, 1))[name])
        super().__init__((stop - start, *first.shape[1:]), first.dtype)

    def part(self, start: int, stop: int) -> ColumnRows:
        """Returns the rows from `start` to `stop`, without reading them."""
        return ColumnRows(self.reader, self.name, self.start + start, self.start + stop)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Reads consecutive rows."""
        start, stop, _ = rows.indices(len(self))
        return self._read(slice(self.start + start, self.start + stop))

    def take(self, indices: np.ndarray, axis: int = 0) -> np.ndarray:
        """Gathers rows."""
        rows = self._read(indices.ravel() + self.start)
        return rows.reshape(*indices.shape, *self.shape[1:])

    def _read(self, rows: slice | np.ndarray) -> np.ndarray:
        array = self._array(self.reader.read(rows)[self.name])
        if array.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"the cells of the column {self.name!r} have different shapes, such as {self.shape[1:]} and "
                f"{array.shape[1:]}. Pad them to one shape, for example in `dataset.map`."
            )
        if array.dtype != self.dtype and not self._takes(array.dtype):
            raise ValueError(
                f"the column {self.name!r} has the dtype {array.dtype} in some rows, but {self.dtype} in the first: "
                "missing values become NaN, and a transformation must return one dtype."
            )
        return array.astype(self.dtype, copy=False)

    def _takes(self, dtype: np.dtype) -> bool:
        if self.dtype.kind in "fc":
            return np.can_cast(dtype, self.dtype, "same_kind")
        return np.can_cast(dtype, self.dtype, "safe")

    def _array(self, values: Any) -> np.ndarray:
        name = f"the column {self.name!r}"
        try:
            return as_numeric(np.asarray(values), name)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{error} `inputs=` takes the names of the columns to use; others are not read."
            ) from error


class StreamBatches:
    """The rows of a streaming data set in batches, as dicts of arrays.

    Args:
        stream: a `datasets.IterableDataset`.
        batch_size: the rows of a batch.
        drop_remaining: True to leave out a short last batch.
    """

    # Without `state_dict`: that of a stream drops what its shuffle buffer held, so a resumed run counts batches.

    def __init__(self, stream: Any, batch_size: int, drop_remaining: bool):
        self.stream, self.batch_size, self.drop_remaining = stream, batch_size, drop_remaining
        self.epoch = stream.epoch

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the next pass, on which the shuffling of the stream depends."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Returns an iterator over one pass."""
        batches = self.stream.with_format("numpy").batch(self.batch_size, drop_last_batch=self.drop_remaining)
        batches.set_epoch(self.epoch)
        return iter(batches)


def has_scalars(stream: Any) -> bool:
    """True if a column of a stream is known to have a single value in each row, so that rows cannot be batches."""
    features = stream.features or {}
    return any(is_instance_of(feature, "datasets", "Value", "ClassLabel") for feature in features.values())
