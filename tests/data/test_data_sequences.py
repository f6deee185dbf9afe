"""Padding against a loop over rows: nothing lost, the mask right."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elegy.data import pad_sequences

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=6)
SIDES = st.sampled_from(["left", "right"])


def made(lengths, shape=(), dtype=np.int32):
    """Sequences without a repeated value, so that a lost or repeated token is seen."""
    counts = np.cumsum([0, *lengths])
    values = 1 + np.arange(counts[-1] * int(np.prod(shape))).reshape(counts[-1], *shape).astype(dtype)
    return [values[a:b] for a, b in itertools.pairwise(counts)]


@settings(max_examples=60)
@given(LENGTHS, SIDES, st.sampled_from([None, "left", "right"]), st.sampled_from([(), (2,)]), st.integers(1, 4))
def test_rows_are_the_sequences_and_padding(lengths, side, truncate, shape, multiple):
    sequences = made(lengths, shape)
    length = None if truncate is None else 4
    padded, mask = pad_sequences(sequences, length, multiple_of=multiple, value=-3, side=side, truncate=truncate)
    expected = length or max(-(-max(lengths) // multiple), 1) * multiple
    assert padded.shape == (len(lengths), expected, *shape)
    assert padded.dtype == np.int32
    for row, here, sequence in zip(padded, mask, sequences, strict=True):
        kept = sequence if truncate is None else sequence[:4] if truncate == "right" else sequence[-4:]
        gap = np.full((expected - len(kept), *shape), -3)
        np.testing.assert_array_equal(row, np.concatenate([kept, gap] if side == "right" else [gap, kept]))
        np.testing.assert_array_equal(row[here], kept)
        assert here.sum() == len(kept)


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.uint8, np.float32, ml_dtypes.bfloat16])
def test_the_dtype_is_kept_also_beside_an_empty_list(dtype):
    padded, mask = pad_sequences([np.ones(2, dtype), [], np.ones(1, dtype)])
    assert (padded.dtype, mask.dtype) == (dtype, bool)
    np.testing.assert_array_equal(padded.astype(int), [[1, 1], [0, 0], [1, 0]])


@pytest.mark.parametrize(
    ("sequences", "options", "error", "message"),
    [
        ([], {}, ValueError, "sequences is empty"),
        ("abc", {}, TypeError, "sequences is a str"),
        (3, {}, TypeError, "sequences is an int"),
        ([[1], 2], {}, ValueError, r"sequences\[1\] is a scalar"),
        ([["a", "b"]], {}, TypeError, r"sequences\[0\] has the dtype <U1.*Tokenize"),
        ([[1], [[2, 3]]], {}, ValueError, r"sequences\[1\] has the shape \(1, 2\), but sequences\[0\] has \(1,\)"),
        ([[[1], [2, 3]]], {}, ValueError, r"sequences\[0\] is ragged"),
        ([[1], [1, 2, 3]], {"length": 2}, ValueError, r"sequences\[1\] has 3 positions, more than length=2.*truncate"),
        ([[1]], {"length": 0}, ValueError, "length"),
        ([[1]], {"value": 0.5}, ValueError, "value=0.5 cannot be stored as int64"),
        ([np.zeros(1, np.uint8)], {"value": -1}, ValueError, "value=-1 cannot be stored as uint8"),
        ([[1]], {"value": float("nan")}, ValueError, "value=nan cannot be stored as int64"),
        ([[1]], {"side": "pre"}, ValueError, "side='pre' is unknown.*'right', 'left'"),
    ],
)
def test_what_cannot_be_padded_is_refused(sequences, options, error, message):
    with pytest.raises(error, match=message):
        pad_sequences(sequences, **options)
