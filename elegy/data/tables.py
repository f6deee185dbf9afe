"""Converts tables and columns of pandas, Polars and PyArrow to arrays. Libraries are recognised, not imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from elegy.data.numeric import as_numeric
from elegy.lazy import is_instance_of
from elegy.names import type_name


def is_table(value: Any) -> bool:
    """True if a value is a DataFrame of pandas or Polars, or a Table or RecordBatch of PyArrow.

    Example:
        >>> is_table(np.zeros(3))
        False
    """
    return _is_frame(value) or _is_arrow_table(value)


def is_series(value: Any) -> bool:
    """True if a value is a Series, or an array, of pandas, Polars or PyArrow.

    Example:
        >>> is_series(np.zeros(3))
        False
    """
    return (
        is_instance_of(value, "pandas", "Series", "Index")
        or is_instance_of(value, "pandas.api.extensions", "ExtensionArray")
        or is_instance_of(value, "polars", "Series")
        or _is_arrow_array(value)
    )


def is_column(value: Any) -> bool:
    """True if a value is a column of a Hugging Face data set, which is read lazily.

    Example:
        >>> is_column(np.zeros(3))
        False
    """
    return is_instance_of(value, "datasets.arrow_dataset", "Column")


def column_names(table: Any) -> list[Any]:
    """Returns the names of a table's columns."""
    return list(table.column_names if _is_arrow_table(table) else table.columns)


def select(table: Any, names: Sequence[Any]) -> Any:
    """Returns a table with some of the columns, without a copy of the values where the library allows that."""
    return table.select(list(names)) if _is_arrow_table(table) else table[list(names)]


def table_as_array(table: Any, name: str) -> np.ndarray:
    """Converts a table to one array.

    Args:
        table: a table with one number in each cell.
        name: the name of the table in messages; a column is `name['column']`.

    Returns:
        An array of shape (rows, columns), with the common dtype of all columns.

    Raises:
        TypeError: if a column is not numeric; the message names it.
        ValueError: if a column has missing values, several numbers in a cell, or values that do not fit into 32 bits.
    """
    columns = []
    for i, column in enumerate(column_names(table)):
        where = f"{name}[{column!r}]"
        try:
            array = series_as_array(_column(table, i), where)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} Or leave the column out: `inputs=` takes the names of those to use.") from error
        if array.ndim != 1:
            raise ValueError(
                f"{where} has an array of shape {array.shape[1:]} in each cell, so it is not a column of numbers. "
                f"Choose it alone, `inputs={column!r}`, or give a dict of arrays."
            )
        columns.append(array)
    if not columns:
        raise ValueError(f"{name} is a table without columns.")
    return np.stack(columns, axis=1)


def _column(table: Any, i: int) -> Any:
    """Returns a column by its position, because names may occur several times."""
    if _is_arrow_table(table):
        return table.column(i)
    return table.iloc[:, i] if hasattr(table, "iloc") else table.to_series(i)


def series_as_array(series: Any, name: str) -> np.ndarray:
    """Converts a column to an array.

    Categories that are numbers become these numbers. NaN in a column of floats is a value, and stays.

    Args:
        series: a Series or array of pandas, Polars or PyArrow.
        name: the name of the column in messages.

    Returns:
        An array of shape (rows,); (rows, ...) if each cell has an array of the same shape.

    Raises:
        TypeError: if the values are not numbers.
        ValueError: if values are missing, or do not fit into 32 bits.
    """
    if _is_arrow_array(series):
        return as_numeric(_of_arrow(series, name), name)
    if is_instance_of(series, "polars", "Series"):
        _refuse_missing(_missing_in_polars(series), len(series), name, f"{_FILL}fill_null(0)`")
        if is_instance_of(series.dtype, "polars", "Categorical", "Enum"):
            _refuse_categories(name, "series.to_physical()")
        return as_numeric(series.to_numpy(), name)
    dtype = series.dtype
    if not isinstance(dtype, np.dtype):
        missing = int(np.sum(series.isna()))
        if not missing and is_instance_of(dtype, "pandas", "ArrowDtype"):
            missing = missing_in(getattr(series, "array", series).__arrow_array__())
        _refuse_missing(missing, len(series), name, f"{_FILL}fillna(0)`")
        if hasattr(dtype, "categories") and dtype.categories.dtype.kind not in "biufc":
            _refuse_categories(name, "series.cat.codes")
    return as_numeric(np.asarray(series), name)


_FILL = "Drop these rows, or replace the values, for example with `."


def _refuse_missing(count: int, size: int, name: str, remedy: str) -> None:
    if count:
        raise ValueError(
            f"{name} has {count} missing values in {size} rows, and nothing says what they stand for. {remedy}; to "
            "ignore rows whose label is missing, fill it and give them the sample_weight 0."
        )


def _refuse_categories(name: str, codes: str) -> NoReturn:
    raise TypeError(
        f"{name} has categories that are not numbers. Give their codes, `{codes}`, for class labels or an embedding, "
        "or one column for each category."
    )


def missing_in(array: Any) -> int:
    """Returns the number of missing values of an array of PyArrow, and of those in its cells if they are lists.

    Args:
        array: an `Array` or a `ChunkedArray`; its values are not read, only where they are missing.
    """
    if hasattr(array, "chunks"):
        return sum(missing_in(chunk) for chunk in array.chunks)
    if hasattr(array, "dictionary"):
        array = array.dictionary_decode()
    array = getattr(array, "storage", array)
    return array.null_count + (missing_in(array.flatten()) if hasattr(array.type, "value_type") else 0)


def _missing_in_polars(series: Any) -> int:
    count = series.null_count()
    if not count and is_instance_of(series.dtype, "polars", "List", "Array"):
        return _missing_in_polars(series.explode())
    return count


def _of_arrow(array: Any, name: str) -> np.ndarray:
    _refuse_missing(missing_in(array), len(array), name, f"{_FILL}fill_null(0)`")
    kind = str(array.type)
    if kind.startswith(("dictionary<values=string", "dictionary<values=large_string")):
        _refuse_categories(name, "array.combine_chunks().indices")
    chunks = array.chunks if hasattr(array, "chunks") else [array]
    if hasattr(array.type, "list_size") and chunks:
        return np.concatenate([_of_fixed_lists(chunk, name) for chunk in chunks])
    if hasattr(chunks[0] if chunks else None, "to_numpy_ndarray"):
        return np.concatenate([chunk.to_numpy_ndarray() for chunk in chunks])
    return array.to_numpy() if hasattr(array, "chunks") else array.to_numpy(zero_copy_only=False)


def _of_fixed_lists(array: Any, name: str) -> np.ndarray:
    values = _of_arrow(array.flatten(), name)
    return values.reshape(len(array), array.type.list_size, *values.shape[1:])


def _is_frame(value: Any) -> bool:
    return is_instance_of(value, "pandas", "DataFrame") or is_instance_of(value, "polars", "DataFrame")


def _is_arrow_table(value: Any) -> bool:
    return is_instance_of(value, "pyarrow", "Table", "RecordBatch")


def _is_arrow_array(value: Any) -> bool:
    return is_instance_of(value, "pyarrow", "ChunkedArray", "Array")


def refuse_lazy_frame(value: Any, what: str) -> None:
    """Refuses a LazyFrame of Polars, whose rows are not known yet.

    Raises:
        TypeError: if the value is one.
    """
    if is_instance_of(value, "polars", "LazyFrame"):
        raise TypeError(f"the inputs of {what} are {type_name(value)} of Polars: give `frame.collect()`.")
