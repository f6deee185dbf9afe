"""Kinds of data beyond plain arrays: sparse, masked, of objects, tables, data sets of other libraries."""

import warnings

import datasets
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import scipy.sparse
from jax.experimental import sparse

from elegy.data import ArraySource, as_source, check_finite, split
from elegy.data.batch import rows
from elegy.data.convert import as_arrays
from elegy.data.iterables import IterableSource
from elegy.data.sparse import SparseRows

DENSE = np.where(np.random.default_rng(0).random((7, 5)) < 0.4, np.arange(35.0).reshape(7, 5), 0).astype(np.float32)
LABELS = np.arange(7)

# sparse matrices


@pytest.mark.parametrize("make", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
def test_sparse_matrices_give_the_rows_of_the_dense_ones(make, kind):
    matrix = getattr(scipy.sparse, f"{make}_{kind}")(DENSE)
    source, dense = as_source(matrix, LABELS), as_source(DENSE, LABELS)
    assert (source.size, source.lazy, source.on_host) == (7, True, True)
    indices = np.array([[6, 0], [3, 3]])
    for ours, theirs in ((source.take(indices), dense.take(indices)), (source.slice(2, 5), dense.slice(2, 5))):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b, strict=True)


def test_a_split_keeps_the_matrix_sparse():
    train, rest = split(as_source(scipy.sparse.csr_array(DENSE), LABELS), 0.4)
    assert train.lazy
    assert rest.lazy
    np.testing.assert_array_equal(rest.slice(0, rest.size)[0], DENSE[4:])
    np.testing.assert_array_equal(train.take(np.array([3, 1]))[0], DENSE[[3, 1]])


def test_a_matrix_that_would_not_fit_dense_is_never_made_dense():
    size, columns = 10**6, 10**7  # 40 TB
    matrix = scipy.sparse.csr_array(([1.0, 2.0], ([0, size - 1], [3, columns - 1])), shape=(size, columns))
    source = as_source(matrix.astype(np.float32), np.zeros(size, np.int32))
    batch = source.take(np.array([size - 1]))[0]
    assert (batch.shape, batch[0, -1]) == ((1, columns), 2.0)


def test_sparse_values_are_checked():
    matrix = scipy.sparse.csr_array(np.array([[0.0, np.nan], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="inputs has 1 of 4"):
        check_finite(as_source(matrix, [0, 1]).batch)
    with pytest.raises(ValueError, match=f"inputs contains {2**40}, which does not fit"):
        as_source(scipy.sparse.csr_array(np.array([[2**40]])))
    with pytest.raises(TypeError, match="class_weight needs dense labels"):
        as_source(DENSE, scipy.sparse.csr_array(np.eye(7)), class_weight={0: 2.0})


def test_sparse_batches_of_an_iterable_become_dense():
    (batch,) = IterableSource([(scipy.sparse.csr_array(DENSE), LABELS)]).batches()
    np.testing.assert_array_equal(batch[0], DENSE, strict=True)
    np.testing.assert_array_equal(as_arrays(scipy.sparse.coo_array(DENSE[0])), DENSE[0])


def test_sparse_rows_print_what_they_are():
    assert repr(SparseRows(scipy.sparse.csr_array(DENSE))) == "SparseRows(shape=(7, 5), dtype=float32)"


@pytest.mark.parametrize("give", [lambda x: (x, LABELS), lambda x: ({"a": x}, LABELS), lambda x: (x,)])
def test_sparse_arrays_of_jax_are_refused(give):
    with pytest.raises(TypeError, match=r"is a BCOO, a sparse array of JAX.*todense"):
        as_source(*give(sparse.BCOO.fromdense(jnp.asarray(DENSE))))


# arrays that JAX does not take as they are


def test_masked_arrays_without_masked_values_are_arrays():
    out = as_arrays(np.ma.masked_array(DENSE))
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, DENSE, strict=True)


def test_a_numpy_matrix_is_an_array():
    rows = np.asarray(DENSE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(rows)
    out = as_arrays({"a": matrix})["a"]
    assert type(out) is np.ndarray
    source = as_source(matrix)
    index = np.arange(4).reshape(2, 2) % len(rows)  # two batches at once
    np.testing.assert_array_equal(source.take(index), rows[index])


def test_masked_values_are_refused():
    with pytest.raises(ValueError, match=r"inputs/a is a masked array in which 2 of 3 values are masked.*filled"):
        as_arrays({"a": np.ma.masked_array([1.0, 2.0, 3.0], [True, False, True])})


@pytest.mark.parametrize(("dtype", "to"), [(np.longdouble, np.float64), (np.clongdouble, np.complex128)])
def test_long_doubles_become_doubles(dtype, to):
    out = as_arrays([np.array([1, 2.5]).astype(dtype), 3.0])[0]
    np.testing.assert_array_equal(out, np.array([1, 2.5], to), strict=True)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        (np.array([1, 2], object), np.array([1, 2])),
        (np.array([[1, 2.5], [True, 0]], object), np.array([[1, 2.5], [1, 0]])),
        (np.array([None, None], object), None),
    ],
)
def test_objects_that_are_numbers_become_numbers(objects, expected):
    if expected is None:
        objects[:] = [np.zeros(2), np.ones(2)]
        expected = np.array([[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(as_arrays(objects), expected, strict=True)


ragged = np.empty(2, object)
ragged[:] = [np.zeros(2), np.zeros(3)]
REFUSED = [
    (np.array([1.5, None], object), TypeError, r"inputs has the dtype object and holds None, which"),
    (np.array([1, "a"], object), TypeError, r"inputs has the dtype <U\d+.*holds text \(the first is '1'\)"),
    (ragged, ValueError, "inputs is an array of objects that have different shapes"),
    (np.array([2**70], object), TypeError, "inputs has the dtype object and holds an int"),
    (np.array(["b"]), TypeError, r"holds text \(the first is 'b'\).*np.unique"),
    (np.array(["2020-01-01"], "datetime64[D]"), TypeError, "holds times.*timedelta64"),
    (np.zeros(2, [("a", "f4"), ("b", "f4")]), TypeError, "has fields. Give a dict"),
    (np.zeros(2, "V3"), TypeError, "cannot be computed with"),
]


@pytest.mark.parametrize(("array", "error", "message"), REFUSED)
def test_what_holds_no_numbers_is_told_apart(array, error, message):
    with pytest.raises(error, match=message):
        as_arrays(array)


# tables


TABLE = pandas.DataFrame({"a": np.float32([1, 2, 3]), "b": np.float32([4, 5, 6])})


def test_columns_of_numbers_and_truths_make_one_array():
    out = as_arrays(TABLE.assign(c=[True, False, True]))
    np.testing.assert_array_equal(out, np.float32([[1, 4, 1], [2, 5, 0], [3, 6, 1]]), strict=True)


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (["u", "v", "w"], TypeError, r"inputs\['c'\] has the dtype .*holds text"),
        (pandas.Categorical(["u", "v", "u"]), TypeError, r"inputs\['c'\] has categories that are not numbers"),
        (pandas.date_range("2020", periods=3), TypeError, r"inputs\['c'\] has the dtype datetime64.*times"),
        ([1, None, "x"], TypeError, r"inputs\['c'\]"),
        ([1, 2, 2**40], ValueError, rf"inputs\['c'\] contains {2**40}"),
    ],
)
def test_a_column_that_does_not_fit_is_named(column, error, message):
    with pytest.raises(error, match=message):
        as_source(TABLE.assign(c=column), LABELS[:3])


def test_columns_with_nan_are_named():
    source = as_source({"t": TABLE.assign(b=[1.0, np.nan, np.inf])}, LABELS[:3])
    with pytest.raises(ValueError, match=r"inputs/t has 2 of 6 \(in the columns \['b'\]\)"):
        check_finite(source.batch, columns=source.columns)


# data sets of other libraries


HF = datasets.Dataset.from_dict({"x": DENSE.tolist(), "y": LABELS.tolist()})


@pytest.mark.parametrize("data", [HF, HF.with_format("numpy")])
def test_columns_of_a_hugging_face_data_set_are_arrays(data):
    source = as_source(data["x"], data["y"])
    assert isinstance(source, ArraySource)
    np.testing.assert_array_equal(source.batch[0], DENSE)
    np.testing.assert_array_equal(source.batch[1], LABELS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (datasets.DatasetDict({"train": HF}), r"a DatasetDict with the splits \['train'\]: choose one"),
        ([{"image": DENSE, "label": LABELS}], r"a list of 1 dict\(s\) with the keys \['image', 'label'\].*as tuples"),
        ([{"image": DENSE[0], "label": 3}] * 2, r"a list of 2 dict\(s\).*np.stack"),
    ],
)
@pytest.mark.parametrize("what", ["fit", "evaluate"])
def test_examples_in_place_of_batches_are_refused(data, message, what):
    with pytest.raises(TypeError, match=message) as caught:
        as_source(data, what=what)
    assert f"the inputs of {what} are" in str(caught.value)


def test_single_examples_of_an_iterable_are_told():
    with pytest.raises(ValueError, match=r"batch 0: labels is a scalar.*group them into batches first"):
        rows((DENSE[0], np.int32(3)), "batch 0: ")


@pytest.mark.needs(library="torch")
def test_a_torch_data_set_without_a_loader_is_refused():
    import torch
    from torch.utils import data

    pairs = data.TensorDataset(torch.from_numpy(DENSE), torch.from_numpy(DENSE))  # each could pass for a batch
    with pytest.raises(TypeError, match=r"a TensorDataset, a PyTorch Dataset.*DataLoader\(dataset, batch_size=32"):
        as_source(pairs)
    loader = data.DataLoader(pairs, batch_size=3)
    assert isinstance(as_source(loader), IterableSource)
