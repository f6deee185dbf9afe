"""Converts pandas DataFrames to arrays, and recognises columns of Hugging Face data sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from elegy.data.numeric import as_numeric
from elegy.lazy import is_instance_of


def is_table(value: Any) -> bool:
    """True if a value is a DataFrame of pandas.

    Example:
        >>> is_table(np.zeros(3))
        False
    """
    return is_instance_of(value, "pandas", "DataFrame")


def is_column(value: Any) -> bool:
    """True if a value is a column of a Hugging Face data set, which is read lazily.

    Example:
        >>> is_column(np.zeros(3))
        False
    """
    return is_instance_of(value, "datasets.arrow_dataset", "Column")


def table_as_array(table: Any, name: str) -> np.ndarray:
    """Converts a DataFrame to one array.

    Args:
        table: a DataFrame.
        name: the name of the table in messages; a column is `name['column']`.

    Returns:
        An array of shape (rows, columns), with the common dtype of all columns.

    Raises:
        TypeError: if a column is not numeric; the message names it.
        ValueError: if a column has values that do not fit into 32 bits.
    """
    columns = [
        as_numeric(np.asarray(table.iloc[:, i]), f"{name}[{column!r}]") for i, column in enumerate(table.columns)
    ]
    whole = np.asarray(table)
    return whole if whole.dtype.kind != "O" else np.stack(columns, axis=1)
