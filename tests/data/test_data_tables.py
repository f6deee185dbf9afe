"""Tables and columns of pandas, Polars and PyArrow as arrays, and what is refused in them."""

import numpy as np
import pandas
import polars
import pyarrow
import pytest

from elegy.data import as_source
from elegy.data.columns import Columns
from elegy.data.convert import as_arrays

COLUMNS = {"a": np.float32([1, 2, 3]), "b": np.int32([4, 5, 6]), "c": np.array([True, False, True])}
MATRIX = np.array([[1, 4, 1], [2, 5, 0], [3, 6, 1]], np.float64)
MAKE = {"pandas": pandas.DataFrame, "polars": polars.DataFrame, "pyarrow": pyarrow.table, "batch": pyarrow.record_batch}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_table_is_a_matrix_of_the_common_dtype(make):
    np.testing.assert_array_equal(as_arrays(make(COLUMNS)), MATRIX, strict=True)
    assert as_source(make({"a": COLUMNS["a"]})).batch.dtype == np.float32


SERIES = {
    "pandas": pandas.Series([1, 2], dtype="int32"),
    "nullable": pandas.Series([1, 2], dtype="Int32"),
    "array": pandas.array([1, 2], dtype="Int32"),
    "arrow backed": pandas.Series([1, 2], dtype=pandas.ArrowDtype(pyarrow.int32())),
    "categories": pandas.Series(np.int32([1, 2])).astype("category"),
    "polars": polars.Series([1, 2], dtype=polars.Int32),
    "pyarrow": pyarrow.array([1, 2], pyarrow.int32()),
    "chunks": pyarrow.chunked_array([[1], [2]], pyarrow.int32()),
    "dictionary": pyarrow.array([1, 2], pyarrow.int32()).dictionary_encode(),
}


@pytest.mark.parametrize("series", SERIES.values(), ids=SERIES)
def test_columns_are_arrays(series):
    np.testing.assert_array_equal(as_arrays(series), np.int32([1, 2]), strict=True)


CELLS = np.arange(12, dtype=np.int32).reshape(3, 2, 2)
ARROW_CELLS = pyarrow.FixedSizeListArray.from_arrays(
    pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(CELLS.ravel()), 2), 2
)
CELLED = {
    "polars": polars.Series(CELLS.tolist(), dtype=polars.Array(polars.Int32, (2, 2))),
    "pyarrow": ARROW_CELLS,
    "chunks": pyarrow.chunked_array([ARROW_CELLS[:1], ARROW_CELLS[1:]]),
    "tensors": pyarrow.FixedShapeTensorArray.from_numpy_ndarray(CELLS),
}


@pytest.mark.parametrize("series", CELLED.values(), ids=CELLED)
def test_cells_of_one_shape_make_an_array(series):
    np.testing.assert_array_equal(as_arrays(series), CELLS, strict=True)


MISSING = {
    "pandas": pandas.Series([1, None, 3], dtype="Int64"),
    "floats": pandas.Series([1, None, 3], dtype="Float32"),
    "truths": pandas.Series([True, None, True], dtype="boolean"),
    "arrow backed": pandas.Series([1, None, 3], dtype=pandas.ArrowDtype(pyarrow.int32())),
    "categories": pandas.Series(pandas.Categorical([1, None, 1])),
    "polars": polars.Series([1.0, None, 3.0]),
    "pyarrow": pyarrow.array([1, None, 3]),
    "chunks": pyarrow.chunked_array([[1, None], [3]]),
}


@pytest.mark.parametrize("series", MISSING.values(), ids=MISSING)
def test_missing_values_are_refused(series):
    with pytest.raises(ValueError, match=r"^labels has 1 missing values in 3 rows.*sample_weight 0"):
        as_source(COLUMNS["a"], series)


@pytest.mark.parametrize("make", [pandas.Series, polars.Series])
def test_nan_is_a_value(make):
    np.testing.assert_array_equal(as_arrays(make(np.array([1.0, np.nan]))), [1, np.nan])


CATEGORIES = {
    "pandas": (pandas.Categorical(["u", "v", "u"]), r"series.cat.codes"),
    "polars": (polars.Series(["u", "v", "u"], dtype=polars.Categorical), r"series.to_physical\(\)"),
    "enum": (polars.Series(["u", "v", "u"], dtype=polars.Enum(["u", "v"])), r"series.to_physical\(\)"),
    "pyarrow": (pyarrow.array(["u", "v", "u"]).dictionary_encode(), r"indices"),
}


@pytest.mark.parametrize(("series", "codes"), CATEGORIES.values(), ids=CATEGORIES)
def test_categories_of_text_are_refused_with_the_way_to_their_codes(series, codes):
    with pytest.raises(TypeError, match=f"^labels has categories that are not numbers.*{codes}"):
        as_source(COLUMNS["a"], series)


TEXT = {"name": ["u", "v", "w"], **COLUMNS}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_the_column_that_does_not_fit_is_named_with_the_way_out(make):
    with pytest.raises(TypeError, match=r"^inputs\['name'\] .*text.*leave the column out: `inputs=`"):
        as_source(make(TEXT))


def test_a_column_of_arrays_is_chosen_alone():
    table = polars.DataFrame({"a": [1, 2, 3], "cells": CELLED["polars"]})
    with pytest.raises(ValueError, match=r"inputs\['cells'\] has an array of shape \(2, 2\).*inputs='cells'"):
        as_source(table)


def test_lazy_frames_are_refused():
    with pytest.raises(TypeError, match=r"are a LazyFrame of Polars: give `frame.collect\(\)`"):
        as_source(polars.LazyFrame(COLUMNS))


INSIDE = {
    "polars lists": polars.Series([[1, None], [3, 4]]),
    "polars arrays": polars.Series([[[1, None]], [[3, 4]]], dtype=polars.Array(polars.Int64, (1, 2))),
    "pyarrow lists": pyarrow.array([[1, None], [3, 4]]),
    "chunks": pyarrow.chunked_array([[[1, None]], [[3, 4]]]),
    "dictionary": pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1]), pyarrow.array([1, None])),
    "arrow backed": pandas.Series([[1, None], [3, 4]], dtype=pandas.ArrowDtype(pyarrow.list_(pyarrow.int64(), 2))),
}


@pytest.mark.parametrize("series", INSIDE.values(), ids=INSIDE)
def test_missing_values_inside_of_cells_are_refused(series):
    with pytest.raises(ValueError, match=r"^inputs has 1 missing values in 2 rows"):
        as_arrays(series)


DURATIONS = {
    "numpy": np.array([1, 2], "m8[s]"),
    "pandas": pandas.Series(pandas.to_timedelta([1, 2])),
    "polars": polars.Series([1, 2]).cast(polars.Duration),
    "pyarrow": pyarrow.array([1, 2], pyarrow.duration("s")),
}


@pytest.mark.parametrize("values", DURATIONS.values(), ids=DURATIONS)
def test_durations_are_times(values):  # NumPy counts them among the signed integers
    with pytest.raises(TypeError, match="holds times"):
        as_arrays(values)


@pytest.mark.parametrize("make", [pandas.DataFrame, pyarrow.Table.from_arrays])
def test_columns_of_one_name_are_read_by_position(make):
    rows = np.arange(6.0).reshape(2, 3)
    names = ["a", "a", "y"]
    table = make(rows, columns=names) if make is pandas.DataFrame else make([*map(pyarrow.array, rows.T)], names)
    np.testing.assert_array_equal(as_arrays(table), rows, strict=True)
    for picked in (Columns(labels="y"), Columns(inputs="y", labels="a")):
        with pytest.raises(ValueError, match=r"the data has 2 columns 'a'.*Rename them"):
            picked.pick(table)
    np.testing.assert_array_equal(as_arrays(Columns(inputs=["y"]).pick(table)), rows[:, 2:], strict=True)
