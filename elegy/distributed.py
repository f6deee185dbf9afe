"""Training in several processes: connecting them, dividing data over them, exchanging values between them."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from elegy.types import PyTree
from elegy.waiting import RunInterrupted

T = TypeVar("T")

_FAILED, _LEFT = 1, 2
"""What a process reports to the others: its action raised an error, or a signal ended its wait."""


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
    """Connects this process with the others of the run. Call it before anything that uses a device.

    Under SLURM, Open MPI, Kubernetes and on TPU pods JAX finds the arguments: call `initialize()`.

    Args:
        coordinator_address: `"host:port"` of the first process, the same in every process.
        num_processes: the number of processes.
        process_id: the index of this process, from 0.
        local_device_ids: the devices of the machine that this process uses; by default all.
        initialization_timeout: seconds to wait for all processes at the start.
        heartbeat_timeout: seconds without a heartbeat after which a process counts as lost, and the others abort.
        shutdown_timeout: seconds to wait for all processes at the end.
        **options: further arguments of `jax.distributed.initialize`.

    Raises:
        RuntimeError: if JAX was used or initialized before, or if not all processes connect in time.
        ValueError: if arguments are missing and JAX recognises no cluster.

    Example:
        >>> import elegy as eg
        >>> eg.distributed.initialize("10.0.0.1:8476", num_processes=2, process_id=0)  # doctest: +SKIP
    """
    if jax.distributed.is_initialized():
        raise RuntimeError("elegy.distributed.initialize was called before. Call it once in each process.")
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
    """True in process 0, which prints and writes files.

    Example:
        >>> is_first()
        True
    """
    return jax.process_index() == 0


class Split:
    """Splits the batches of an iterable that yields the same batches in every process, for `fit` or `evaluate`.

    Without this class, `fit` takes an iterable as this process's own part of the data. With it, process `i` of `n`
    keeps the `i`-th of `n` parts of each batch.

    Args:
        batches: an iterable of batches, or a function without arguments that returns an iterator.

    Example:
        >>> list(Split([(np.arange(4), np.arange(4))]))
        [(array([0, 1, 2, 3]), array([0, 1, 2, 3]))]
    """

    def __init__(self, batches: Iterable[Any] | Callable[[], Iterator[Any]]):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        """Returns an iterator over one pass."""
        return map(self.part, self.batches() if callable(self.batches) else self.batches)

    @staticmethod
    def part(batch: PyTree) -> PyTree:
        """Returns this process's part of a batch, as views.

        Args:
            batch: a tree of arrays of shape `(rows, ...)`.
        """
        index, count = jax.process_index(), jax.process_count()
        return jax.tree.map(lambda leaf: np.array_split(np.asarray(leaf), count)[index], batch)

    def __len__(self) -> int:
        """Returns the number of batches.

        Raises:
            TypeError: if the iterable has no length.
        """
        return len(self.batches)  # type: ignore[arg-type]


def gather(value: PyTree) -> PyTree:
    """Returns the values of all processes, stacked on a new leading axis in process order, as NumPy arrays.

    Args:
        value: numbers and arrays, with the same shapes in all processes.

    Example:
        >>> gather(np.arange(2))
        array([[0, 1]])
    """
    if jax.process_count() == 1:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], value)
    _check_alike()
    from jax.experimental import multihost_utils

    # Each leaf gets an axis first: with `tiled=True`, `process_allgather` concatenates along it.
    return jax.tree.map(
        lambda leaf: np.asarray(multihost_utils.process_allgather(np.asarray(leaf)[None], tiled=True)), value
    )


def from_first(value: PyTree) -> PyTree:
    """Returns the value of process 0 in every process.

    Args:
        value: numbers and arrays, with the same shapes in all processes.

    Example:
        >>> from_first(np.arange(2))
        array([0, 1])
    """
    if jax.process_count() == 1:
        return value
    _check_alike()
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)


@functools.cache
def _check_alike() -> None:
    """Checks that all processes have the same number of devices, over which JAX's collectives divide their values.

    Raises:
        RuntimeError: if they have not.
    """
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        each = ", ".join(f"process {index} has {count}" for index, count in sorted(counts.items()))
        raise RuntimeError(
            f"the processes have different numbers of devices ({each}): give each the same number, for example with "
            "`jax_num_cpu_devices` or CUDA_VISIBLE_DEVICES."
        )


def collect(value: PyTree) -> PyTree:
    """Returns a tree with whole arrays in place of arrays that are divided over processes; all processes must call it.

    Under `"fsdp"` the parameters are divided over processes, so that no process can read them alone.

    Args:
        value: a tree, for example `trainer.state.params`.

    Returns:
        The tree with NumPy arrays (for typed keys, JAX arrays of this process) in place of divided arrays; other leaves
        are unchanged.

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
    """Runs an action in every process; if it fails in one, it raises an error in all of them.

    Args:
        action: the function to run; all processes must call `together` at the same point of the program.
        what: the name of the action in the message.

    Raises:
        Exception: the error of the action, in the process in which it failed.
        RuntimeError: if the action failed in another process.
        RunInterrupted: in all processes, if a signal ended the wait of one of them.

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
