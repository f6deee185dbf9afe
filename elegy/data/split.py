"""Splits validation data from the end of the training data."""

from __future__ import annotations

import math
import numbers

from elegy.data.iterables import IterableSource
from elegy.data.sources import ArraySource


def split(source: ArraySource | IterableSource, fraction: float) -> tuple[ArraySource, ArraySource]:
    """Splits off the last rows for validation, before any shuffling.

    The validation part has the sample weights without the class weights, as in Keras.

    Args:
        source: arrays.
        fraction: the fraction for validation, between 0 and 1; `floor(size * (1 - fraction))` rows are for training.

    Returns:
        `(train, validation)`, both views of the given NumPy arrays.

    Raises:
        TypeError: if the fraction is not a number, or the source is an iterable.
        ValueError: if the fraction is not inside (0, 1), or leaves one of the parts empty.

    Example:
        >>> import numpy as np
        >>> train, validation = split(ArraySource.of(np.arange(10)), 0.2)
        >>> train.size, validation.batch
        (8, array([8, 9]))
    """
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real):
        raise TypeError(f"validation_split must be a number between 0 and 1, not {fraction!r}.")
    if not 0 < fraction < 1:
        raise ValueError(
            f"validation_split={fraction} is outside of (0, 1): it is the fraction of the examples that is kept for "
            "validation, such as 0.2."
        )
    if isinstance(source, IterableSource):
        raise TypeError(
            "validation_split needs arrays, whose last rows it keeps for validation, but the data is an iterable of "
            "batches. Give validation_data instead."
        )
    kept = math.floor(source.size * (1 - fraction))
    if kept == 0 or kept == source.size:
        raise ValueError(
            f"validation_split={fraction} of {source.size} examples leaves {kept} for training and "
            f"{source.size - kept} for validation; both need at least one. Change the fraction, or give "
            "validation_data."
        )
    return source.part(0, kept), source.part(kept, source.size, weighted=False)
