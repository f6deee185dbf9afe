"""Reads examples of a data set into arrays; as a program, it does so for another process.

A worker process runs this file by its path, so that it imports neither this package nor JAX. It imports NumPy, and what
the data set needs.
"""

from __future__ import annotations

import numbers
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

_SECONDS = 0.5
"""How often a worker looks if the process that started it still runs."""


class Spec(NamedTuple):
    """The shape and the dtype of one array of an example, its name in messages, and the keys of the dicts around it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    keys: tuple[Any, ...] = ()


class ReadError(Exception):
    """An example could not be read; the cause says why.

    Args:
        index: the index of the example; None if no example was read.
    """

    def __init__(self, index: int | None):
        super().__init__(index)
        self.index = index


def leaves_of(example: Any) -> list[Any]:
    """Returns the arrays of an example: it, or what dicts, lists and tuples in it contain.

    A list of numbers is an array.

    Example:
        >>> leaves_of(({"b": 1, "a": [2, 3]}, None))
        [[2, 3], 1]
    """
    if example is None:
        return []
    if isinstance(example, dict):
        return [leaf for key in sorted(example, key=str) for leaf in leaves_of(example[key])]
    if isinstance(example, (tuple, list)) and not is_numbers(example):
        return [leaf for part in example for leaf in leaves_of(part)]
    return [example]


def keys_of(example: Any, keys: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the keys of the dicts around each array of an example, in the order of `leaves_of`.

    Example:
        >>> keys_of(({"b": 1, "a": {"c": [2, 3]}}, 0))
        [('a', 'c'), ('b',), ()]
    """
    if example is None:
        return []
    if isinstance(example, dict):
        return [one for key in sorted(example, key=str) for one in keys_of(example[key], (*keys, key))]
    if isinstance(example, (tuple, list)) and not is_numbers(example):
        return [one for part in example for one in keys_of(part, keys)]
    return [keys]


def is_numbers(example: Any) -> bool:
    """True for a list of numbers, or of such lists.

    Example:
        >>> is_numbers([1, 2.0]), is_numbers([[1], [2]]), is_numbers((1, 2)), is_numbers([np.zeros(2)])
        (True, True, False, False)
    """
    if type(example) is not list:
        return False
    return all(isinstance(part, (numbers.Number, np.generic)) or is_numbers(part) for part in example)


def only(example: Any, keys: tuple[Any, ...] | None) -> Any:
    """Returns an example with some keys of its dict, which is the example or the first of its parts; None for all.

    Example:
        >>> only({"a": 1, "text": "one"}, ("a",)), only(({"a": 1, "text": "one"}, 2), ("a",))
        ({'a': 1}, ({'a': 1}, 2))
    """
    if keys is None:
        return example
    if isinstance(example, dict):
        return {key: example[key] for key in keys}
    return (only(example[0], keys), *example[1:])


def fill(
    dataset: Any,
    indices: Iterable[int],
    specs: list[Spec],
    out: list[np.ndarray],
    keys: tuple[Any, ...] | None = None,
) -> None:
    """Reads examples into arrays.

    Args:
        dataset: has `__getitem__`.
        indices: the examples.
        specs: what an example contains.
        out: arrays of shape (examples, ...), whose rows are written in order.
        keys: the keys that are used; see `only`.

    Raises:
        ReadError: with the index of an example that could not be read, or differs from `specs`.
    """
    expected = [spec.keys for spec in specs]
    for row, index in enumerate(indices):
        try:
            example = only(dataset[index], keys)
            leaves = leaves_of(example)
            if len(leaves) != len(specs):
                raise ValueError(f"it has {len(leaves)} arrays, but example 0 has {len(specs)}.")
            if any(expected) and (found := keys_of(example)) != expected:
                raise ValueError(f"its arrays have the keys {found}, but those of example 0 have {expected}.")
            for leaf, spec, array in zip(leaves, specs, out, strict=True):
                value = np.asarray(leaf)
                if value.shape != spec.shape:
                    raise ValueError(
                        f"{spec.name} has the shape {value.shape}, but in example 0 it has {spec.shape}: pad the "
                        "examples to one shape."
                    )
                if value.dtype != spec.dtype and not np.can_cast(value.dtype, spec.dtype, "safe"):
                    raise ValueError(
                        f"{spec.name} has the dtype {value.dtype}, but in example 0 it has {spec.dtype}: return the "
                        "same dtype for every example."
                    )
                array[row] = value
        except Exception as error:
            raise ReadError(index) from error


def empty(specs: list[Spec], count: int) -> list[np.ndarray]:
    """Returns arrays for `count` examples."""
    return [np.empty((count, *spec.shape), spec.dtype) for spec in specs]


def _report(index: int | None, error: BaseException) -> bytes:
    try:
        cause = pickle.dumps(error)
        pickle.loads(cause)
    except Exception:
        cause = None
    text = "".join(traceback.format_exception(error))
    return pickle.dumps((index, cause, f"{type(error).__name__}: {error}", text))


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(0)


def main() -> None:
    """Reads examples for the process that started this one, until it closes the connection or ends."""
    from multiprocessing.connection import Connection

    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    dataset: Any = None
    specs: list[Spec] = []
    keys: tuple[Any, ...] | None = None
    try:
        while True:
            message = connection.recv_bytes()
            try:
                if not specs:
                    path, arrays, keys, pickled = pickle.loads(message)
                    sys.path[:] = path
                    dataset, specs = pickle.loads(pickled), [Spec(*one) for one in arrays]
                    answer: Any = b""
                else:
                    indices = pickle.loads(message)
                    out = empty(specs, len(indices))
                    fill(dataset, indices, specs, out, keys)
                    answer = out
            except ReadError as error:
                answer = _report(error.index, error.__cause__ or error)
            except Exception as error:
                answer = _report(None, error)
            connection.send_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
    except (EOFError, OSError):  # the other process closed the connection, or ended
        os._exit(0)


if __name__ == "__main__":
    main()
