"""Packing against a loop over rows: no token lost or repeated, ids and positions right, labels within a sequence."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_sequences import made

from elegy.data import pack_sequences

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(any)


@settings(max_examples=80)
@given(LENGTHS, st.integers(1, 10), st.sampled_from([(), (2,)]))
def test_every_token_is_in_one_place_of_its_sequence(lengths, length, shape):
    sequences = made(lengths, shape)
    packed = pack_sequences(sequences, length, split_long=True)
    assert sorted(packed.tokens[packed.mask].ravel()) == sorted(np.concatenate(sequences).ravel())
    assert not packed.tokens[~packed.mask].any()
    assert not packed.positions[~packed.mask].any()
    np.testing.assert_array_equal(packed.sequences < 0, ~packed.mask)
    found = {}
    for tokens, ids, positions, owners in zip(*packed, strict=True):
        assert sorted(set(ids) - {0}) == list(range(1, ids.max() + 1))
        assert (np.diff(ids[ids > 0]) >= 0).all()  # from left to right, padding last
        assert (np.diff((ids > 0).astype(int)) <= 0).all()
        for one in range(1, ids.max() + 1):
            np.testing.assert_array_equal(positions[ids == one], np.arange((ids == one).sum()))
            (owner,) = set(owners[ids == one].tolist())
            found.setdefault(owner, []).append(tokens[ids == one])
    for i, sequence in enumerate(sequences):
        pieces = sorted(found.get(i, []), key=lambda piece: piece.ravel()[0])
        assert [len(piece) for piece in pieces] == [
            len(sequence[k : k + length]) for k in range(0, len(sequence), length)
        ]
        if len(sequence):
            np.testing.assert_array_equal(np.concatenate(pieces), sequence)


@settings(max_examples=40)
@given(LENGTHS)
def test_rows_are_filled_well(lengths):
    rows = len(pack_sequences(made(lengths), 9).tokens)
    assert rows <= 11 / 9 * -(-sum(lengths) // 9) + 2 + sum(n > 4 for n in lengths)
    halves = sum(n > 4 for n in lengths)  # no two of them share a row
    assert max(halves, -(-sum(lengths) // 9)) <= rows


@settings(max_examples=60)
@given(LENGTHS)
def test_the_label_is_the_next_token_of_the_same_sequence(lengths):
    sequences = made(lengths)
    packed = pack_sequences(sequences, 12)
    labels, weights = packed.next_tokens()
    expected = {int(a): int(b) for one in sequences for a, b in itertools.pairwise(one)}
    pairs = zip(packed.tokens.ravel().tolist(), labels.ravel().tolist(), weights.ravel().tolist(), strict=True)
    found = {token: label for token, label, weight in pairs if weight}
    assert found == expected
    assert weights.sum() == len(expected)
    assert (labels.dtype, weights.dtype) == (np.int32, np.float32)


def test_attention_within_segments_gives_what_each_sequence_gives_alone():
    vectors = [np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32) for n in (3, 5, 2, 4)]

    def attend(x, allowed):
        scores = np.where(allowed, np.exp(x @ np.swapaxes(x, -1, -2)), 0)
        return scores / np.maximum(scores.sum(-1, keepdims=True), 1e-9) @ x

    packed = pack_sequences(vectors, 7)
    ids = packed.segment_ids
    causal = np.tril(np.ones((7, 7), bool))
    out = attend(packed.tokens, (ids[:, :, None] == ids[:, None, :]) & causal)
    for i, x in enumerate(vectors):
        alone = attend(x, causal[: len(x), : len(x)])
        np.testing.assert_allclose(out[packed.sequences == i], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ([[1, 2, 3]], {"length": 2}, r"sequences\[0\] has 3 positions, more than length=2.*split_long=True"),
        ([[], []], {"length": 2}, "the 2 sequences have no tokens"),
        ([], {"length": 2}, "sequences is empty"),
        ([[1]], {"length": 0}, "length"),
        ([[1]], {"length": 2, "value": 1.5}, "value=1.5 cannot be stored"),
    ],
)
def test_what_cannot_be_packed_is_refused(sequences, options, message):
    with pytest.raises(ValueError, match=message):
        pack_sequences(sequences, **options)
