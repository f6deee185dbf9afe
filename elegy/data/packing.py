"""Packs several sequences into each row of an array, for language models."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from elegy.data.sequences import as_padding, as_sequences, check_lengths, lengths_of
from elegy.integers import positive_int


class PackedSequences(NamedTuple):
    """Rows that contain several sequences each.

    Args:
        tokens: the tokens, of shape (rows, length, ...).
        segment_ids: `int32[rows, length]`: 1, 2, ... for the sequences of a row from left to right, 0 for padding.
        positions: `int32[rows, length]`: the position of a token in its sequence, from 0; 0 for padding.
        sequences: `int32[rows, length]`: the index of the sequence that a token belongs to; -1 for padding.

    Example:
        >>> packed = pack_sequences([[5, 6, 7], [8, 9]], length=6)
        >>> packed.tokens.tolist(), packed.segment_ids.tolist()
        ([[5, 6, 7, 8, 9, 0]], [[1, 1, 1, 2, 2, 0]])
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """What a module takes: `{"tokens": ..., "segment_ids": ..., "positions": ...}`."""
        return {"tokens": self.tokens, "segment_ids": self.segment_ids, "positions": self.positions}

    @property
    def mask(self) -> np.ndarray:
        """`bool[rows, length]`, False for padding."""
        return self.segment_ids > 0

    def next_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the labels and the weights of next-token prediction.

        Returns:
            `(labels, weights)`: the token that follows each token in the same sequence, of the shape and dtype of
            `tokens`, and `float32[rows, length]`. The last token of a sequence, and padding, have the weight 0.

        Example:
            >>> labels, weights = pack_sequences([[5, 6, 7], [8, 9]], length=6).next_tokens()
            >>> labels.tolist(), weights.tolist()
            ([[6, 7, 0, 9, 0, 0]], [[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
        """
        follows = np.zeros(self.segment_ids.shape, bool)
        follows[:, :-1] = (self.segment_ids[:, 1:] == self.segment_ids[:, :-1]) & (self.segment_ids[:, 1:] > 0)
        labels = np.zeros_like(self.tokens)
        labels[:, :-1][follows[:, :-1]] = self.tokens[:, 1:][follows[:, :-1]]
        return labels, follows.astype(np.float32)


def pack_sequences(
    sequences: Iterable[Any], length: int, *, value: float = 0, split_long: bool = False
) -> PackedSequences:
    """Packs sequences into as few rows of one length as best fit by decreasing length finds.

    A sequence is never cut, unless `split_long` is set. Sequences of equal length keep their order; rows are numbered
    in the order in which they were begun. Sequences without tokens are left out.

    Args:
        sequences: n arrays of shape (length_i, ...).
        length: the length of a row.
        value: what padding holds.
        split_long: True to cut a sequence that is longer than a row into pieces of `length` tokens and a rest, each of
            which becomes a segment with positions from 0.

    Raises:
        TypeError: if a sequence does not contain numbers or booleans.
        ValueError: if no sequence has a token, a sequence is too long, or the dtype cannot hold `value`.

    Example:
        >>> pack_sequences([[1, 2], [3, 4, 5, 6], [7, 8]], length=4).tokens.tolist()
        [[3, 4, 5, 6], [1, 2, 7, 8]]
    """
    length = positive_int("length", length)
    arrays = as_sequences(sequences)
    lengths = lengths_of(arrays)
    if not lengths.sum():
        raise ValueError(f"the {len(arrays)} sequences have no tokens: at least one of them must not be empty.")
    if not split_long:
        check_lengths(lengths, length, "length", "Use longer rows, or split_long=True.")
    source, start, size = _pieces(lengths, length)
    row, place, segment = _best_fit(size, length)
    order = np.lexsort((place, row))
    source, start, size, row, place, segment = (a[order] for a in (source, start, size, row, place, segment))
    within = _ranges(size)  # the position of each token in its piece
    where = np.repeat(row * length + place, size) + within
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    tokens = np.concatenate(arrays)[np.repeat(offsets[source] + start, size) + within]
    rows = int(row.max()) + 1

    def filled(values: np.ndarray, padding: Any, dtype: Any) -> np.ndarray:
        out = np.full((rows * length, *values.shape[1:]), padding, dtype)
        out[where] = values
        return out.reshape(rows, length, *values.shape[1:])

    return PackedSequences(
        filled(tokens, as_padding(value, tokens.dtype), tokens.dtype),
        filled(np.repeat(segment, size), 0, np.int32),
        filled(within, 0, np.int32),
        filled(np.repeat(source, size), -1, np.int32),
    )


def _pieces(lengths: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts sequences into pieces of at most `length` tokens; returns the sequence, start and size of each piece."""
    counts = -(-lengths // length)
    source = np.repeat(np.arange(len(lengths)), counts)
    start = _ranges(counts) * length
    return source, start, np.minimum(lengths[source] - start, length)


def _ranges(counts: np.ndarray) -> np.ndarray:
    """Returns `0 .. count - 1` for each count, concatenated."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds a row for each piece: the fullest one that has room, the longest pieces first.

    Returns:
        `(row, place, segment)` of each piece: its row, where it begins in it, and its number in it, from 1.
    """
    row, place, segment = (np.zeros(len(sizes), np.int64) for _ in range(3))
    open_rows: dict[int, list[int]] = {}  # by the room that is left
    rooms: list[int] = []  # the keys of `open_rows`, sorted
    used: list[int] = []  # segments of each row
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        at = bisect.bisect_left(rooms, size)
        if at < len(rooms):
            room = rooms[at]
            which = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        else:
            room, which = length, len(used)
            used.append(0)
        used[which] += 1
        row[piece], place[piece], segment[piece] = which, length - room, used[which]
        if left := room - size:
            if left not in open_rows:
                bisect.insort(rooms, left)
            open_rows.setdefault(left, []).append(which)
    return row, place, segment
