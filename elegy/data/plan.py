"""Divides an epoch over arrays into batches."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from elegy.data.permutation import index_dtype
from elegy.integers import positive_int

DEFAULT_BATCH_SIZE = 32
"""The default batch size."""

BATCH_SIZE_NAMES = {"fit": "batch_size", "validation": "validation_batch_size"}
"""The argument for the batch size, by call; `batch_size` if not listed."""

LIMIT_NAMES = {"fit": "steps_per_epoch", "validation": "validation_steps"}
"""The argument for the number of steps, by call; `steps` if not listed."""


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """The batches of an epoch over `size` examples, as ranges of the epoch's order.

    Args:
        size: the number of examples.
        batch_size: examples in a batch; None means 32, or all of them if there are fewer. A number larger than the
            data is an error for fit, and means all of the data elsewhere.
        drop_remaining: True to leave out a short last batch.
        limit: the largest number of batches; None for all.
        what: the call, `"fit"`, `"validation"`, `"evaluate"` or `"predict"`, for messages.
        done: how many examples of the order an interrupted epoch has seen; the plan is about the others.

    Raises:
        TypeError: if a count is not an integer.
        ValueError: if a count is not positive, fit's batch is larger than the data, or the limit is beyond
            the number of batches.

    Example:
        >>> plan = EpochPlan(size=10, batch_size=4)
        >>> plan.steps, plan.last_size, [plan.batch_rows(i) for i in range(3)]
        (3, 2, [(0, 4), (4, 8), (8, 10)])
    """

    size: int
    batch_size: int = None  # type: ignore[assignment]  # an int once constructed
    drop_remaining: bool = False
    limit: int | None = None
    what: str = "fit"
    done: int = 0

    def __post_init__(self) -> None:
        size_name = BATCH_SIZE_NAMES.get(self.what, "batch_size")
        limit_name = LIMIT_NAMES.get(self.what, "steps")
        if self.size <= 0:
            raise ValueError(f"the data of {self.what} is empty: there must be at least one example.")
        batch_size = DEFAULT_BATCH_SIZE if self.batch_size is None else positive_int(size_name, self.batch_size)
        if batch_size > self.size and self.batch_size is not None and self.what == "fit":
            raise ValueError(
                f"{size_name}={batch_size} is larger than the data, which has {self.size} examples. "
                f"Use a {size_name} of at most {self.size}."
            )
        object.__setattr__(self, "batch_size", min(batch_size, self.size))
        if self.limit is not None:
            limit = positive_int(limit_name, self.limit)
            if limit > self._available:
                dropped = " (the short last batch is dropped)" if self.drop_remaining else ""
                raise ValueError(
                    f"{limit_name}={limit} is beyond the data: {self.size} examples make {self._available} batches of "
                    f"{self.batch_size}{dropped}. Use {limit_name}={self._available} or less, or leave it out."
                )
            object.__setattr__(self, "limit", limit)

    @functools.cached_property
    def _available(self) -> int:
        whole, rest = divmod(self.size - self.done, self.batch_size)
        return whole + (rest > 0 and not self.drop_remaining)

    def exhausted(self, batches: int, examples: int) -> bool:
        """True if an epoch is over.

        Args:
            batches: how many batches it has seen.
            examples: how many examples it has seen.

        Example:
            >>> EpochPlan(size=10, batch_size=4).exhausted(3, 10), EpochPlan(size=10, batch_size=4).exhausted(3, 6)
            (True, False)
        """
        left = self.size - examples
        whole = left < self.batch_size if self.drop_remaining else left <= 0
        return whole or (self.limit is not None and batches >= self.limit)

    @property
    def steps(self) -> int:
        """The number of batches."""
        return self._available if self.limit is None else self.limit

    @property
    def last_size(self) -> int:
        """The number of examples in the last batch."""
        start, stop = self.batch_rows(self.steps - 1)
        return stop - start

    def batch_rows(self, i: int) -> tuple[int, int]:
        """Returns the start and the stop of batch `i` in the epoch's order.

        Raises:
            IndexError: if there is no such batch.
        """
        if not 0 <= i < self.steps:
            raise IndexError(f"there is no batch {i}: the epoch has {self.steps} batches.")
        start = self.done + i * self.batch_size
        return start, min(start + self.batch_size, self.size)

    def index_matrix(self, order: np.ndarray | None, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of the examples of `count` consecutive batches.

        Args:
            order: the epoch's order, of shape (size,), or (size, members); None for the data's own.
            first: the number of the first batch.
            count: the number of batches.

        Returns:
            `(indices, sizes)`: examples by batch, of shape (count, batch_size), where a short batch repeats its
            last example, and the true sizes, of shape (count,), int32. The indices are int32 where `size` allows.

        Raises:
            IndexError: if a batch is beyond the epoch.
            ValueError: if the order has another length than the data.

        Example:
            >>> indices, sizes = EpochPlan(size=5, batch_size=3).index_matrix(None, 0, 2)
            >>> indices.tolist(), sizes.tolist()
            ([[0, 1, 2], [3, 4, 4]], [3, 2])
        """
        if order is not None and order.shape[:1] != (self.size,):
            raise ValueError(f"the order has the shape {order.shape}, but the data has {self.size} examples.")
        dtype = index_dtype(self.size)
        if count == 0:
            return np.zeros((0, self.batch_size), dtype), np.zeros(0, np.int32)
        start, stop = self.batch_rows(first)[0], self.batch_rows(first + count - 1)[1]
        places = np.minimum(np.arange(start, start + count * self.batch_size), stop - 1)
        starts = np.arange(start, stop, self.batch_size)
        sizes = np.minimum(stop - starts, self.batch_size)
        indices = places if order is None else order[places]
        indices = indices.reshape(count, self.batch_size, *indices.shape[1:])
        return indices.astype(dtype, copy=False), sizes.astype(np.int32)
