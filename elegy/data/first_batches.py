"""Takes the first batches of a source, to train on them again and again."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from elegy.data.iterables import IterableSource
from elegy.data.sources import ArraySource


def first_batches(
    source: ArraySource | IterableSource, count: int, batch_size: int
) -> tuple[ArraySource | IterableSource, Callable[[], ArraySource | IterableSource]]:
    """Returns sources of the first batches of a source: all of them if there are fewer.

    Args:
        source: the data; of an iterator, these batches are read.
        count: the number of batches.
        batch_size: the rows of a batch, for arrays and for iterables of rows.

    Returns:
        `(train, validation)`: a source of these batches, and a function that returns another one, without the class
        weights.

    Example:
        >>> train, _ = first_batches(IterableSource(([i] for i in range(9))), 2, 32)
        >>> [float(batch[0]) for batch in train.batches()]
        [0.0, 1.0]
    """
    if isinstance(source, ArraySource):
        stop = min(count * batch_size, source.size)
        return source.part(0, stop), lambda: source.part(0, stop, weighted=False)
    source = source.in_batches(batch_size, False)
    class_weight, source.class_weight = source.class_weight, None  # added again as the batches are read from the list
    batches = source.batches()
    kept = list(itertools.islice(batches, count))
    source.end()
    size = source.batch_size
    return (
        IterableSource(kept, class_weight=class_weight, batch_size=size),
        lambda: IterableSource(kept, what="validation", batch_size=size),
    )
