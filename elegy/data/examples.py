"""Map-style data sets: single examples, read by index when a batch is gathered."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from elegy.data.aligned import aligned_empty
from elegy.data.batch import PARTS, join_name
from elegy.data.columns import Columns
from elegy.data.example_worker import ReadError, Spec, fill, is_numbers, keys_of, leaves_of, only
from elegy.data.lazy_rows import LazyRows
from elegy.data.numeric import as_numeric
from elegy.data.workers import Kind, WorkerPool
from elegy.errors import ExampleError
from elegy.integers import as_integer
from elegy.lazy import is_instance_of
from elegy.names import type_name
from elegy.types import Batch
from elegy.waiting import Wait


class Examples:
    """A map-style data set for `fit`, `evaluate` and `predict`, which make batches of its examples.

    An example is `inputs`, `(inputs, labels)` or `(inputs, labels, sample_weight)` without a dimension of rows, as
    PyTorch's data sets return them. Inputs and labels may be dicts, lists and tuples. Examples are shuffled with the
    trainer's permutation, and a run resumes exactly, as with arrays.

    Of a dict, `inputs=` of `fit`, `evaluate` and `predict` chooses the keys to use; others may contain anything.

    Workers run as long as a call of `fit`, `evaluate` or `predict`, and read ahead of the steps.

    Args:
        dataset: has `__len__` and `__getitem__`. It is called with `int`s in `range(len(dataset))`.
        workers: the number of threads or processes that read examples; 0 reads them in the thread of the loop.
        kind: `"threads"`, which share the data set: best if reading waits for files, or runs code that releases the
            GIL (NumPy, image decoders). `"processes"`, each of which has a copy of the data set, made with
            `cloudpickle`.

    Raises:
        TypeError: if `dataset` has no `__len__` and `__getitem__`, or an example contains something else than numbers;
            the call raises it for the values of a dict that it uses.
        ValueError: if the data set is empty, `workers` is negative, or `kind` is unknown.
        ExampleError: if example 0 cannot be read; a call raises it for others.

    Example:
        >>> class Squares:
        ...     def __len__(self):
        ...         return 100
        ...
        ...     def __getitem__(self, i):
        ...         return np.float32([i]), np.float32([i**2])
        >>> Examples(Squares(), workers=2)
        Examples(Squares, size=100, workers=2, kind='threads')
    """

    def __init__(self, dataset: Any, *, workers: int = 0, kind: Kind = "threads"):
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise TypeError(f"the data set is {type_name(dataset)}, which has no `__len__` and `__getitem__`.")
        if (count := as_integer(workers)) is None:
            raise TypeError(f"workers must be an integer, not {workers!r}.")
        if count < 0:
            raise ValueError(f"workers={workers} is negative: use 0 to read in the thread of the loop.")
        if kind not in ("threads", "processes"):
            raise ValueError(f"kind={kind!r} is unknown: use 'threads' or 'processes'.")
        if len(dataset) == 0:
            raise ValueError(f"the {type(dataset).__name__} is empty: there must be at least one example.")
        self.dataset, self.workers = dataset, count
        self.kind: Kind = kind
        self.reader = ExampleReader(dataset, count, kind)
        if self.names is None:
            self.reader.check()

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self.reader.size

    def __repr__(self) -> str:
        name = type(self.dataset).__name__
        return f"Examples({name}, size={len(self)}, workers={self.workers}, kind={self.kind!r})"

    @property
    def names(self) -> list[Any] | None:
        """The keys of example 0, or of its inputs if it is a tuple; None if that is not a dict."""
        first = self.reader.first
        first = first[0] if isinstance(first, tuple) and first else first
        return list(first) if isinstance(first, dict) else None

    def only(self, columns: Columns | None, where: str, only_inputs: bool) -> Examples:
        """Returns the examples with those of their `names` that are used; arguments and errors as for `Columns.used`.

        Args:
            columns: chooses the names; None for all.
            where: the name of the data in messages.
            only_inputs: True without labels and sample weights.
        """
        if columns is None or self.names is None:
            return self
        used = tuple(columns.used(self.names, where, only_inputs)[1])
        chosen = copy.copy(self)
        chosen.reader = ExampleReader(self.dataset, self.workers, self.kind, used, self.reader.first)
        return chosen

    def rows(self) -> Batch:
        """Returns all examples as one batch, whose arrays are `ExampleRows`.

        Raises:
            TypeError: if an example contains something else than numbers.
        """
        positions = iter(range(len(self.reader.specs)))

        def of(part: Any) -> Any:
            if part is None:
                return None
            if isinstance(part, dict):
                made = {key: of(part[key]) for key in sorted(part, key=str)}
                return {key: made[key] for key in part}
            if isinstance(part, (tuple, list)) and not is_numbers(part):
                parts = [of(one) for one in part]
                return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
            return ExampleRows(self.reader, next(positions))

        return of(self.reader.first)


def as_examples(inputs: Any, batch_size: Any) -> Any:
    """Returns the examples of a map-style data set if a batch size was given; other inputs as they are.

    Without a batch size, the items of a sequence are batches.

    Example:
        >>> as_examples([1, 2], 32)
        [1, 2]
    """
    if batch_size is None or not hasattr(inputs, "__len__"):
        return inputs
    torch = is_instance_of(inputs, "torch.utils.data", "Dataset")
    by_index = hasattr(inputs, "__getitem__") and (torch or not hasattr(inputs, "__iter__"))
    return Examples(inputs) if by_index and not hasattr(inputs, "__array__") else inputs


class ExampleReader:
    """Reads examples of a data set, with workers while a call runs.

    Args:
        dataset: the data set.
        workers: the number of workers.
        kind: the kind of workers.
        keys: the keys of examples that are used; None for all.
        first: example 0, if it was read before.

    Attributes:
        first: example 0, of its keys those that are used.
        size: the number of examples.
        workers: the number of workers.
    """

    def __init__(self, dataset: Any, workers: int, kind: Kind, keys: tuple[Any, ...] | None = None, first: Any = None):
        self._dataset, self.workers, self._keys = dataset, workers, keys
        self._kind: Kind = kind
        self.size = len(dataset)
        try:
            first = dataset[0] if first is None else first
        except Exception as error:
            raise self._error(0, error) from error
        if type(first) is list and not is_numbers(first):
            first = tuple(first)
        self.first = only(first, keys)
        self._lock = threading.Lock()
        self._users = 0
        self._pool: WorkerPool | None = None

    @functools.cached_property
    def specs(self) -> list[Spec]:
        """What an example contains."""
        found = zip(leaves_of(self.first), _names(self.first), keys_of(self.first), strict=True)
        return [_spec(leaf, name, keys) for leaf, name, keys in found]

    def check(self) -> None:
        """Checks that an example contains numbers alone.

        Raises:
            TypeError: if it contains something else; the message names it.
        """
        _ = self.specs

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A block in which workers read; they end with the last such block."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                pool, self._pool = (self._pool, None) if not self._users else (None, self._pool)
            if pool is not None:
                pool.stop()

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Reads examples.

        Args:
            indices: integers of any shape; an example that they repeat is read once.

        Returns:
            An array of shape `indices.shape + shape` for each array of an example.

        Raises:
            ExampleError: if an example could not be read.
        """
        flat = indices.ravel()
        unique, inverse = np.unique(flat, return_inverse=True)
        repeated = len(unique) < len(flat)
        which = (unique if repeated else flat).tolist()
        out = [aligned_empty((len(which), *spec.shape), spec.dtype) for spec in self.specs]
        try:
            self._read(which, out)
        except ReadError as error:
            cause = error.__cause__ or error
            raise self._error(error.index, cause) from cause
        arrays = [array[inverse] for array in out] if repeated else out
        return [
            np.asarray(as_numeric(array.reshape(*indices.shape, *spec.shape), spec.name))
            for array, spec in zip(arrays, self.specs, strict=True)
        ]

    def _read(self, which: list[int], out: list[np.ndarray]) -> None:
        with self._lock:
            if self._users and self.workers and self._pool is None:
                self._pool = WorkerPool(self._dataset, self.specs, self.workers, self._kind, self._keys)
            pool = self._pool
        if pool is not None:
            pool.read(which, out)
            return
        # A signal must not end the wait of one of several processes: all of them must stop after the same step.
        with contextlib.nullcontext() if jax.distributed.is_initialized() else Wait():
            fill(self._dataset, which, self.specs, out, self._keys)

    def _error(self, index: int | None, cause: BaseException) -> ExampleError:
        doing = "making it in a worker process" if index is None else f"reading example {index}"
        return ExampleError(f"{doing} of the {type(self._dataset).__name__} failed: {type(cause).__name__}: {cause}")


class ExampleRows(LazyRows):
    """One array of all examples of a data set, with the interface of an array of shape (examples, ...).

    Args:
        reader: reads the examples.
        position: which array of an example.
        start: the first example.
        stop: the example after the last; None for all.
    """

    def __init__(self, reader: ExampleReader, position: int, start: int = 0, stop: int | None = None):
        self.reader, self.position, self.start = reader, position, start
        self.stop = reader.size if stop is None else stop
        spec = reader.specs[position]
        super().__init__((self.stop - start, *spec.shape), spec.dtype)

    def part(self, start: int, stop: int) -> ExampleRows:
        """Returns the examples from `start` to `stop`, without reading them."""
        return ExampleRows(self.reader, self.position, self.start + start, min(self.start + stop, self.stop))

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Reads examples."""
        return self.take(np.arange(*rows.indices(self.shape[0])))

    def take(self, indices: np.ndarray, axis: int = 0) -> np.ndarray:
        """Reads examples; see `ExampleReader.read`."""
        return self.reader.read(np.asarray(indices) + self.start)[self.position]


def take_together(leaves: Sequence[Any], indices: np.ndarray) -> list[Any]:
    """Reads rows of the `ExampleRows` among leaves, each example once; None in place of other leaves."""
    read: dict[tuple[int, int], list[np.ndarray]] = {}
    out: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, ExampleRows):
            out.append(None)
            continue
        key = id(leaf.reader), leaf.start
        if key not in read:
            read[key] = leaf.reader.read(np.asarray(indices) + leaf.start)
        out.append(read[key][leaf.position])
    return out


def _spec(leaf: Any, name: str, keys: tuple[Any, ...]) -> Spec:
    try:
        array = np.asarray(as_numeric(np.asarray(leaf), f"example 0: {name}"))
    except TypeError as error:
        if not keys:
            raise
        raise TypeError(f"{error} `inputs=` takes the names of the keys to use; others may hold anything.") from error
    return Spec(name, array.shape, array.dtype, keys)


def _names(example: Any) -> list[str]:
    """Returns the names of the leaves of an example, in their order."""
    parts = example if type(example) is tuple and 1 <= len(example) <= 3 else (example,)

    def of(part: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if isinstance(part, dict):
            for key in sorted(part, key=str):
                yield from of(part[key], (*path, jax.tree_util.DictKey(key)))
        elif isinstance(part, (tuple, list)) and not is_numbers(part):
            for i, one in enumerate(part):
                yield from of(one, (*path, jax.tree_util.SequenceKey(i)))
        elif part is not None:
            yield path

    return [join_name(name, path) for name, part in zip(PARTS, parts, strict=False) for path in of(part, ())]
