"""Several processes that train together: how they find each other, and which part of the data is whose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from elegy.types import PyTree
from elegy.waiting import RunInterrupted

T = TypeVar("T")

_FAILED, _LEFT = 1, 2
"""What a process tells the others of an action: it failed, or a signal ended its wait."""


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
        RuntimeError: if JAX was used before or is initialized already, or if not all processes came in time.
        ValueError: if no cluster is recognised and arguments are missing.

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
    """True if this is the process that prints and writes files; the only one is.

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
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        return map(self.part, self.batches() if callable(self.batches) else self.batches)

    @staticmethod
    def part(batch: PyTree) -> PyTree:
        """This process's part of a batch: views of its rows.

        Args:
            batch: a tree of arrays of shape `(rows, ...)`.
        """
        index, count = jax.process_index(), jax.process_count()
        return jax.tree.map(lambda leaf: np.array_split(np.asarray(leaf), count)[index], batch)

    def __len__(self) -> int:
        """The number of batches, where the iterable tells.

        Raises:
            TypeError: if it does not.
        """
        return len(self.batches)  # type: ignore[arg-type]


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


def collect(value: PyTree) -> PyTree:
    """Arrays that are divided over several processes, whole in every process; all of them must call it.

    Parameters under `"fsdp"` are such arrays: no process can read them alone.

    Args:
        value: a tree, for example `trainer.state.params`.

    Returns:
        The tree with NumPy arrays (for typed keys, JAX arrays of this process) in place of arrays that lie on several
        processes; everything else is as it was.

    Example:
        >>> collect({"w": np.arange(2), "steps": 3})
        {'steps': 3, 'w': array([0, 1])}
    """
    return jax.tree.map(_collected, value)


def _collected(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_collected(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    if leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def together(action: Callable[[], T], what: str) -> T:
    """Runs an action in every process, so that one in which it fails does not leave the others waiting.

    Args:
        action: the same step of the program in every process.
        what: names it, for the message.

    Raises:
        RuntimeError: if it failed in another process; where it failed, its own error is raised.
        RunInterrupted: in all processes, when a signal ended the wait of one of them.

    Example:
        >>> together(lambda: 3, "counting")
        3
    """
    if jax.process_count() == 1:
        return action()
    try:
        result = action()
    except RunInterrupted:
        gather(np.int8(_LEFT))
        raise
    except Exception:
        gather(np.int8(_FAILED))
        raise
    found = gather(np.int8(0))
    if (found == _LEFT).any():
        raise RunInterrupted
    failed = np.flatnonzero(found == _FAILED)
    if failed.size:
        raise RuntimeError(f"{what} failed in process {failed[0]}: its own error says why.")
    return result
