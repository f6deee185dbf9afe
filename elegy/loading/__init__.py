"""Loading: batches of one source, grouped into chunks and placed on the devices."""

from __future__ import annotations

from typing import Any

from elegy.data import ArraySource, IterableSource
from elegy.loading.batch_loader import ArrayLoader, BatchLoader, Cursor, IterableLoader
from elegy.loading.multihost import MultihostLoader

__all__ = ["ArrayLoader", "BatchLoader", "Cursor", "IterableLoader", "MultihostLoader", "batch_loader"]


def batch_loader(
    source: ArraySource | IterableSource,
    *,
    processes: int,
    batch_size: int | None,
    what: str,
    drop_remaining: bool = False,
    finite: bool = False,
    **options: Any,
) -> BatchLoader:
    """The loader for a source.

    Args:
        source: arrays or an iterable of batches.
        processes: the number of processes that share a batch.
        batch_size: rows of a batch, for arrays.
        what: the call, for messages.
        drop_remaining: whether the short last batch of arrays is left out.
        finite: whether to refuse batches of an iterable that hold NaN or infinity.
        **options: as for `BatchLoader`.

    Raises:
        ValueError: if an argument is given that an iterable cannot heed, or does not fit the arrays.

    Example:
        >>> import numpy as np
        >>> source = ArraySource.of((np.zeros((10, 2)), np.zeros(10)))
        >>> batch_loader(source, processes=1, batch_size=4, what="fit", limit=None).steps
        3
    """
    if isinstance(source, ArraySource):
        return ArrayLoader(source, batch_size, drop_remaining, what=what, **options)
    if batch_size is not None:
        raise ValueError(
            f"batch_size={batch_size} was given to {what} with an iterable, whose batches have their size already."
        )
    if drop_remaining:
        raise ValueError(
            f"drop_remaining was given to {what} with an iterable, whose batches are taken as they come. Let the "
            "iterable leave the short one out."
        )
    loader = MultihostLoader if processes > 1 else IterableLoader
    return loader(source, finite, what=what, **options)
