"""Loading: iterates the batches of a source, groups them into chunks and places them on the devices."""

from __future__ import annotations

from typing import Any

from elegy.data import ArraySource, IterableSource
from elegy.loading.batch_loader import ArrayLoader, BatchLoader, IterableLoader
from elegy.loading.device_copies import DeviceCopies
from elegy.loading.multihost import MultihostLoader
from elegy.loading.part import Cursor, Part

__all__ = ["BatchLoader", "Cursor", "DeviceCopies", "Part", "batch_loader"]


def batch_loader(
    source: ArraySource | IterableSource,
    *,
    processes: int,
    batch_size: int | None,
    what: str,
    drop_remaining: bool = False,
    finite: bool = False,
    copies: DeviceCopies | None = None,
    **options: Any,
) -> BatchLoader:
    """Makes the loader for a source.

    Args:
        source: arrays or an iterable of batches.
        processes: the number of processes over which a batch is divided.
        batch_size: rows of a batch, for arrays and for iterables of rows.
        what: the call, for messages.
        drop_remaining: True to leave out the short last batch of them.
        finite: True to refuse batches of an iterable with NaN or infinity.
        copies: places resident data; shared by the loaders of one trainer.
        **options: as for `BatchLoader`.

    Raises:
        ValueError: if an argument does not apply to an iterable, or does not fit the arrays.

    Example:
        >>> import numpy as np
        >>> source = ArraySource.of((np.zeros((10, 2)), np.zeros(10)))
        >>> batch_loader(source, processes=1, batch_size=4, what="fit", limit=None).steps
        3
    """
    if isinstance(source, ArraySource):
        return ArrayLoader(source, batch_size, drop_remaining, copies=copies, what=what, **options)
    source = source.in_batches(batch_size, drop_remaining, processes)
    loader = MultihostLoader if processes > 1 else IterableLoader
    if source.batch_size is None and batch_size is not None:
        raise ValueError(
            f"batch_size={batch_size} was given to {what} with an iterable, whose batches have their size already."
            f"{source.how_to_batch(batch_size)}"
        )
    if source.batch_size is None and drop_remaining:
        raise ValueError(
            f"drop_remaining was given to {what} with an iterable, which makes its own batches. Let the iterable leave "
            "the short one out."
        )
    return loader(source, finite, what=what, **options)
