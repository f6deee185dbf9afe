"""Several processes that train together: how they find each other, and which part of the data is whose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from elegy.types import PyTree


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    local_device_ids: int | Sequence[int] | None = None,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 100,
    shutdown_timeout: int = 300,
    **options: Any,
) -> None:
    """Connects this process with the others of the run; call it first, before anything that touches a device.

    Under SLURM, Open MPI, Kubernetes and on TPU pods JAX finds the arguments by itself: `initialize()`.

    Args:
        coordinator_address: `"host:port"` of the first process, the same in every process.
        num_processes: how many processes there are.
        process_id: the number of this process, from 0.
        local_device_ids: which of the machine's devices this process uses; all where none are given.
        initialization_timeout: seconds to wait for all processes at the start.
        heartbeat_timeout: seconds without a sign of life after which a process counts as lost; the others end then.
        shutdown_timeout: seconds to wait for all processes at the end.
        **options: further arguments of `jax.distributed.initialize`.

    Raises:
        RuntimeError: when JAX was used before, or is initialized already; when not all processes came in time.
        ValueError: when no cluster is recognised and arguments are missing.

    Example:
        >>> import elegy as eg
        >>> eg.distributed.initialize("10.0.0.1:8476", num_processes=2, process_id=0)  # doctest: +SKIP
    """
    if jax.distributed.is_initialized():
        raise RuntimeError("elegy.distributed.initialize was called before: one call a process is enough.")
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        local_device_ids,
        initialization_timeout=initialization_timeout,
        heartbeat_timeout_seconds=heartbeat_timeout,
        shutdown_timeout_seconds=shutdown_timeout,
        **options,
    )


def is_first() -> bool:
    """Whether this is the process that prints and writes files; the only one is.

    Example:
        >>> is_first()
        True
    """
    return jax.process_index() == 0


class Split:
    """Batches of which every process sees all and keeps its part, to be fed to `fit`, `evaluate` or `predict`.

    An iterable is taken as its process's own share of the data. One that yields the same batches everywhere is split
    by this class: of each batch, process `i` of `n` keeps the `i`-th of `n` parts.

    Args:
        batches: an iterable of batches, or a function without arguments that returns an iterator.

    Example:
        >>> list(Split([(np.arange(4), np.arange(4))]))
        [(array([0, 1, 2, 3]), array([0, 1, 2, 3]))]
    """

    def __init__(self, batches: Iterable[Any] | Callable[[], Iterator[Any]]):
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        batches = self._batches() if callable(self._batches) else self._batches
        index, count = jax.process_index(), jax.process_count()
        for batch in batches:
            yield jax.tree.map(lambda leaf: np.array_split(np.asarray(leaf), count)[index], batch)

    def __len__(self) -> int:
        """The number of batches, where the iterable tells.

        Raises:
            TypeError: when it does not.
        """
        return len(self._batches)  # type: ignore[arg-type]


def gather(value: PyTree) -> PyTree:
    """What every process holds, stacked on a new leading axis in their order, as NumPy arrays in every process.

    Args:
        value: numbers and arrays of one shape in all processes.

    Example:
        >>> gather(np.arange(2))
        array([[0, 1]])
    """
    if jax.process_count() == 1:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], value)
    from jax.experimental import multihost_utils

    # Every leaf as a vector at least: of scalars `process_allgather` makes an axis of its own.
    return jax.tree.map(
        lambda leaf: np.asarray(multihost_utils.process_allgather(np.asarray(leaf)[None], tiled=True)), value
    )


def from_first(value: PyTree) -> PyTree:
    """What the first process holds, in every process.

    Args:
        value: numbers and arrays of one shape in all processes.

    Example:
        >>> from_first(np.arange(2))
        array([0, 1])
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)
