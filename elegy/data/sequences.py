"""Pads sequences of different lengths to arrays with masks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from elegy.integers import positive_int
from elegy.names import type_name

Side = Literal["left", "right"]


def pad_sequences(
    sequences: Iterable[Any],
    length: int | None = None,
    *,
    multiple_of: int = 1,
    value: float = 0,
    side: Side = "right",
    truncate: Side | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pads sequences of different lengths to one array.

    Args:
        sequences: n arrays of shape (length_i, ...): token ids, or vectors for each position. Their lengths differ;
            other dimensions do not.
        length: the length of the result; None for that of the longest sequence, at least 1.
        multiple_of: a length that is not given is rounded up to a multiple of this, so that fewer shapes are compiled.
        value: what padding holds.
        side: where padding is added: `"right"` after the sequence, `"left"` before it.
        truncate: `"right"` removes the end of a sequence that is longer than `length`, `"left"` its beginning; None
            raises an error.

    Returns:
        `(padded, mask)`: an array of shape (n, length, ...) with the common dtype of the sequences, and
        `bool[n, length]`, True for positions of the sequences.

    Raises:
        TypeError: if a sequence does not contain numbers or booleans.
        ValueError: if there is no sequence, a sequence is a scalar or its further dimensions differ from the first
            one's, a sequence is too long, the dtype cannot hold `value`, or an option is unknown.

    Example:
        >>> padded, mask = pad_sequences([[5, 6, 7], [8]])
        >>> padded.tolist(), mask.sum(1).tolist()
        ([[5, 6, 7], [8, 0, 0]], [3, 1])
    """
    for name, option, allowed in (("side", side, ("right", "left")), ("truncate", truncate, (None, "right", "left"))):
        if option not in allowed:
            raise ValueError(f"{name}={option!r} is unknown: use one of {', '.join(map(repr, allowed))}.")
    multiple_of = positive_int("multiple_of", multiple_of)
    arrays = as_sequences(sequences)
    lengths = lengths_of(arrays)
    if length is None:
        length = rounded_up(int(lengths.max()), multiple_of)
    length = positive_int("length", length)
    if truncate is not None:
        arrays = [array[:length] if truncate == "right" else array[max(len(array) - length, 0) :] for array in arrays]
        lengths = np.minimum(lengths, length)
    check_lengths(lengths, length, "length", "Use a larger one, or truncate='right'.")
    return padded_to(arrays, lengths, length, value, side)


def padded_to(
    arrays: list[np.ndarray], lengths: np.ndarray, length: int, value: float = 0, side: Side = "right"
) -> tuple[np.ndarray, np.ndarray]:
    """Pads arrays of one dtype whose lengths are known and not greater than `length`; see `pad_sequences`."""
    places = np.arange(length)
    mask = places < lengths[:, None] if side == "right" else places >= length - lengths[:, None]
    padded = np.full((len(arrays), length, *arrays[0].shape[1:]), as_padding(value, arrays[0].dtype), arrays[0].dtype)
    padded[mask] = np.concatenate(arrays)
    return padded, mask


def as_sequences(sequences: Any, name: str = "sequences") -> list[np.ndarray]:
    """Converts sequences to arrays of one dtype, whose shapes differ in the first dimension only.

    An empty list has the dtype and the further dimensions of the other sequences.

    Args:
        sequences: an iterable of array-likes.
        name: the name in error messages.

    Raises:
        TypeError: if the argument is not iterable, or a sequence does not contain numbers or booleans.
        ValueError: if there is no sequence, a sequence is a scalar or ragged, or its further dimensions differ from the
            first one's.

    Example:
        >>> [array.dtype.name for array in as_sequences([np.arange(2, dtype=np.int32), []])]
        ['int32', 'int32']
    """
    if isinstance(sequences, (str, bytes, dict)) or not hasattr(sequences, "__iter__"):
        raise TypeError(
            f"{name} is {type_name(sequences)}, but must be a list of sequences: arrays or lists of numbers."
        )
    arrays = [_as_sequence(sequence, f"{name}[{i}]") for i, sequence in enumerate(sequences)]
    if not arrays:
        raise ValueError(f"{name} is empty: there must be at least one sequence.")
    filled = [(i, array) for i, array in enumerate(arrays) if len(array)] or [(0, arrays[0])]
    first, shape = filled[0][0], filled[0][1].shape[1:]
    for i, array in filled:
        if array.shape[1:] != shape:
            raise ValueError(
                f"{name}[{i}] has the shape {array.shape}, but {name}[{first}] has {filled[0][1].shape}: only the "
                "first dimension, the length, may differ."
            )
    dtype = np.result_type(*{array.dtype for _, array in filled})
    return [array.astype(dtype, copy=False) if len(array) else np.zeros((0, *shape), dtype) for array in arrays]


def _as_sequence(sequence: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(sequence)
    except ValueError as error:
        raise ValueError(f"{name} is ragged: {error}") from error
    if not array.ndim:
        raise ValueError(f"{name} is a scalar ({sequence!r}), but must be a sequence: an array or a list of numbers.")
    if array.dtype.kind not in "biuf" and not (array.dtype.isbuiltin == 2):  # 2: bfloat16 and other types of ml_dtypes
        raise TypeError(
            f"{name} has the dtype {array.dtype}, but must contain numbers or booleans. Tokenize text first."
        )
    return array


def lengths_of(arrays: list[np.ndarray]) -> np.ndarray:
    """Returns the lengths of arrays, `int64[n]`.

    Example:
        >>> lengths_of([np.zeros(2), np.zeros(3)])
        array([2, 3])
    """
    return np.fromiter((len(array) for array in arrays), np.int64, len(arrays))


def check_lengths(lengths: np.ndarray, length: int, name: str, remedy: str, what: str = "sequences") -> None:
    """Checks that no sequence is longer than `length`.

    Raises:
        ValueError: naming the longest sequence.
    """
    longest = int(np.argmax(lengths))
    if lengths[longest] > length:
        raise ValueError(f"{what}[{longest}] has {lengths[longest]} positions, more than {name}={length}. {remedy}")


def rounded_up(length: int, multiple: int) -> int:
    """Returns the smallest positive multiple of `multiple` that is not less than `length`.

    Example:
        >>> rounded_up(9, 8), rounded_up(0, 8)
        (16, 8)
    """
    return max(-(-length // multiple), 1) * multiple


def as_padding(value: float, dtype: np.dtype) -> np.ndarray:
    """Converts the value of padding to a dtype.

    Raises:
        ValueError: if the dtype cannot hold it.
    """
    fits = dtype.kind not in "biu" or (
        float(value).is_integer() and (dtype.kind == "b" or np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    )
    if not fits or (dtype.kind == "b" and value not in (0, 1)):
        raise ValueError(f"value={value!r} cannot be stored as {dtype}, the dtype of the sequences.")
    return np.asarray(value).astype(dtype)
