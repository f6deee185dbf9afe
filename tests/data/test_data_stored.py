"""Arrays in files: which rows are read, in which order, and how they are shuffled."""

import datasets
import h5py
import numpy as np
import pytest
import zarr

from elegy.data import as_source, check_finite, epoch_permutation, split
from elegy.data.blocks import Blocks
from elegy.data.columns import Columns
from elegy.data.stored import StoredRows

X = np.arange(600, dtype=np.float32).reshape(200, 3)
SMALL = Blocks(rows=10, window=4)


class Recorded:
    """An array that records which rows were read."""

    def __init__(self, array=X):
        self.array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, []

    def __getitem__(self, rows):
        self.reads.append((rows.start, rows.stop))
        return self.array[rows]


# blocks


@pytest.mark.parametrize(("size", "rows", "window"), [(200, 10, 4), (203, 10, 4), (7, 2, 1), (200, 7, 3)])
def test_the_order_is_a_permutation_that_stays_within_windows(size, rows, window):
    blocks = Blocks(rows, window)
    orders = [blocks.permutation(42, epoch, size) for epoch in (0, 0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
        place = np.argsort(order)
        for start in range(0, size, rows):  # the rows of a block are used within one window
            assert np.ptp(place[start : start + rows]) < rows * window
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()
    assert (np.diff(orders[0][: rows * window]) != 1).any()


def test_what_fits_into_one_window_is_shuffled_as_arrays_are():
    order = Blocks(rows=10, window=20).permutation(3, 5, size=200, attempt=2)
    np.testing.assert_array_equal(order, epoch_permutation(3, 5, 200, 2))


def test_blocks_are_whole_chunks_of_about_a_megabyte():
    assert Blocks.of(10**6, 4 * 10**9, chunk=100) == Blocks(rows=200, window=83)
    assert Blocks.of(10**6, 4 * 10**9, chunk=5000) == Blocks(rows=5000, window=3)
    assert Blocks.of(100, 400).rows == 7  # small data, too, are read in parts


def test_the_rest_of_an_order_is_shuffled_within_windows():
    order = SMALL.permutation(0, 0, 200)
    rest = SMALL.reshuffled(order[50:], 0, 0, 1)
    np.testing.assert_array_equal(np.sort(rest), np.sort(order[50:]))
    assert (rest != order[50:]).any()
    recorded = Recorded()
    rows = StoredRows(recorded, "inputs", blocks=SMALL)
    for start in range(0, 150, 10):
        rows.take(rest[start : start + 10])
    assert len(recorded.reads) <= 2 * 20  # a window that the pieces divide is read twice


# reading


@pytest.mark.parametrize("batch", [1, 16, 64, 200])
def test_each_block_is_read_once_in_a_shuffled_epoch_and_in_the_order_of_the_file(batch):
    recorded = Recorded()
    rows = StoredRows(recorded, "inputs", blocks=SMALL)
    order = SMALL.permutation(0, 1, 200)
    for start in range(0, 200, batch):
        np.testing.assert_array_equal(rows.take(order[start : start + batch]), X[order[start : start + batch]])
    if batch == 200:
        assert recorded.reads == [(0, 200)]  # the caller asked for all
        return
    assert sorted(recorded.reads) == [(i, i + 10) for i in range(0, 200, 10)]
    first = [start for start, _ in recorded.reads[: 1 if batch == 1 else 4]]
    assert first == sorted(first)


def test_rows_in_order_are_read_alone():
    recorded = Recorded()
    source = as_source(np.zeros(200), np.zeros(200))
    rows = StoredRows(recorded, "inputs", blocks=SMALL)
    np.testing.assert_array_equal(rows.take(np.arange(30, 46).reshape(2, 8)), X[30:46].reshape(2, 8, 3))
    np.testing.assert_array_equal(rows[46:62], X[46:62])
    assert recorded.reads == [(30, 46), (46, 62)]
    assert source.blocks is None


def test_rows_from_everywhere_are_read_in_groups_of_blocks():
    rows = StoredRows(Recorded(), "inputs", blocks=Blocks(rows=2, window=1))
    index = np.random.default_rng(0).integers(0, 200, (4, 30))
    np.testing.assert_array_equal(rows.take(index), X[index])


def test_a_failed_read_leaves_the_blocks_usable():
    class Failing(Recorded):
        def __getitem__(self, rows):
            if rows.start == 50 and not self.reads.count("failed"):
                self.reads.append("failed")
                raise OSError("the disk is gone")
            return super().__getitem__(rows)

    rows = StoredRows(Failing(), "inputs", blocks=Blocks(rows=10, window=1))
    rows.take(np.array([0, 15]))
    with pytest.raises(OSError, match="disk is gone"):
        rows.take(np.array([55, 3]))
    np.testing.assert_array_equal(rows.take(np.array([55, 3])), X[[55, 3]])
    np.testing.assert_array_equal(rows.take(np.array([15, 55])), X[[15, 55]])


# kinds


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = X, np.arange(200)
        file["big"], file["text"], file["one"] = np.array([1, 2**40]), np.array([b"a"] * 200), 3
        file.create_dataset("swapped", data=X.astype(">f8"), chunks=(9, 3))
        yield file


def test_files_stay_files_and_labels_have_their_blocks(file):
    source = as_source(file["x"], file["y"])
    assert (source.size, source.lazy, source.on_host) == (200, True, True)
    assert {leaf.blocks for leaf in source.batch} == {source.blocks}
    assert as_source(file["swapped"]).batch.dtype == np.dtype(np.float64)
    assert as_source(file["swapped"]).blocks.rows % 9 == 0
    train, rest = split(source, 0.25)
    np.testing.assert_array_equal(train.take(np.array([149, 0]))[0], X[[149, 0]])
    np.testing.assert_array_equal(rest.slice(0, 50)[0], X[150:])


def test_class_weights_read_the_labels_alone(file):
    source = as_source(file["x"], file["y"], class_weight={3: 5.0})
    np.testing.assert_array_equal(source.take(np.array([3, 4]))[2], [5, 1])


def test_what_is_wrong_in_files_is_told(file):
    with pytest.raises(TypeError, match=r"inputs has the dtype .*text"):
        as_source(file["text"])
    with pytest.raises(ValueError, match="inputs is a scalar"):
        as_source(file["one"])
    with pytest.raises(ValueError, match=f"inputs contains {2**40}, which does not fit"):
        as_source(file["big"]).slice(0, 2)
    closed = file["x"]
    file.close()
    with pytest.raises(ValueError, match="inputs is a dataset of an HDF5 file that is closed"):
        as_source(closed)


def test_values_that_are_not_finite_are_counted_in_blocks(tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", data=np.where(X == 7, np.nan, X), chunks=(50, 3))
    with pytest.raises(ValueError, match="inputs has 1 of 600"):
        check_finite(as_source(array).batch)


def test_large_memory_maps_are_read_in_blocks(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr("elegy.data.stored.WINDOW_BYTES", 1000)
    source = as_source(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert isinstance(source.batch, StoredRows)
    np.testing.assert_array_equal(source.take(np.array([199, 4])), X[[199, 4]])


# Hugging Face


def test_only_the_columns_in_use_are_read():
    data = datasets.Dataset.from_dict({"x": X.tolist(), "y": list(range(200)), "text": ["t"] * 200})
    inputs, labels = as_source(data, columns=Columns("x", "y")).take(np.array([[5, 1], [0, 5]]))
    np.testing.assert_array_equal(inputs, X[[[5, 1], [0, 5]]])
    np.testing.assert_array_equal(labels, [[5, 1], [0, 5]])
    with pytest.raises(TypeError, match=r"the column 'text' .*text.*`inputs=` takes the names"):
        as_source(data, columns=Columns(labels="y"))
    assert sorted(as_source(data.remove_columns("text")).batch) == ["x", "y"]


def test_transformations_make_columns():
    data = datasets.Dataset.from_dict({"x": X.tolist()})
    data = data.with_transform(lambda rows: {"double": 2 * np.asarray(rows["x"], np.float32)})
    np.testing.assert_array_equal(as_source(data, columns=Columns("double")).take(np.array([7])), 2 * X[[7]])


def test_cells_of_different_shapes_are_told():
    data = datasets.Dataset.from_dict({"x": [[1.0], [2.0], [3.0, 4.0]]})
    with pytest.raises(ValueError, match="cells of the column 'x' have different shapes"):
        as_source(data).batch["x"].take(np.array([2]))
    with pytest.raises(ValueError, match="the column 'x' is an array of objects that have different shapes"):
        as_source(data).batch["x"].take(np.array([0, 2]))


@pytest.mark.parametrize("cells", [[0, 1, None, 1], [0.0, 1.0, None, 1.0], [[1, 2], [1, 2], [1, None], [1, 2]]])
def test_missing_values_of_a_data_set_are_refused_unless_their_rows_are_left_out(cells):
    data = datasets.Dataset.from_dict({"x": [[1.0]] * 4, "y": cells})
    with pytest.raises(ValueError, match="'y' has 1 missing values in 4 rows"):
        as_source(data, columns=Columns(labels="y"))
    _, labels = as_source(data.select([3, 1]), columns=Columns(labels="y")).take(np.array([1, 0]))
    np.testing.assert_array_equal(labels, np.array([cells[1], cells[3]]))


def test_a_transformation_that_changes_the_dtype_is_told():
    data = datasets.Dataset.from_dict({"x": [0, 1, 2, 3]})
    data = data.with_transform(lambda rows: {"x": [np.nan if one == 2 else one for one in rows["x"]]})
    source = as_source(data)
    np.testing.assert_array_equal(source.take(np.array([3, 1]))["x"], [3, 1])
    with pytest.raises(ValueError, match="'x' has the dtype float64 in some rows, but int64 in the first"):
        source.take(np.array([1, 2]))


def test_cells_of_variable_length_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("ragged", (3,), dtype=h5py.vlen_dtype(np.float32))
        file["text"] = ["a", "b", "c"]
        for name in ("ragged", "text"):
            with pytest.raises(TypeError, match=r"^inputs is a Dataset of the dtype object: its cells are text, or"):
                as_source(file[name])
