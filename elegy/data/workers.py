"""Threads and processes that read examples of a data set in parallel."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Literal

import cloudpickle
import jax
import numpy as np

from elegy.data import example_worker
from elegy.data.example_worker import ReadError, Spec, fill
from elegy.settings import inherited
from elegy.waiting import Wait, receive

Kind = Literal["threads", "processes"]

_PIECES = 4
"""Each worker has about this many parts of a batch, so that one with slow examples does not delay the others."""

_SECONDS = 5.0
"""How long a process may take to end before it is killed."""

Fill = Callable[[list[int], list[np.ndarray]], None]


class WorkerPool:
    """Reads examples in several threads, each of which may have a process of its own.

    Args:
        dataset: has `__getitem__`; processes receive a copy.
        specs: what an example contains.
        count: the number of workers.
        kind: `"threads"` or `"processes"`.
        keys: the keys of examples that are used; None for all.

    Raises:
        TypeError: if the data set cannot be sent to processes.
    """

    def __init__(self, dataset: Any, specs: list[Spec], count: int, kind: Kind, keys: tuple[Any, ...] | None = None):
        self._stopped = False
        self._count = count
        self._tasks: SimpleQueue[Callable[[Fill], None] | None] = SimpleQueue()
        self._processes: list[WorkerProcess] = []
        fills: list[Fill] = [lambda indices, out: fill(dataset, indices, specs, out, keys)] * count
        if kind == "processes":
            try:
                pickled = cloudpickle.dumps(dataset)
            except Exception as error:
                raise TypeError(
                    f"the {type(dataset).__name__} cannot be sent to worker processes: {error!r}. Open files and "
                    "connections at the first `__getitem__`, or use kind='threads'."
                ) from error
            message = pickle.dumps((sys.path, [tuple(spec) for spec in specs], keys, pickled))
            self._processes = [WorkerProcess(type(dataset).__name__, message) for _ in range(count)]
            fills = [process.fill for process in self._processes]
        for i, one in enumerate(fills):
            run = inherited(self._work)
            threading.Thread(target=run, args=(one,), name=f"elegy-examples-{i}", daemon=True).start()

    def read(self, indices: list[int], out: list[np.ndarray]) -> None:
        """Reads examples into arrays, and waits for all of them. A signal can end the wait.

        Raises:
            ReadError: if an example could not be read.
            RuntimeError: if a worker process ended.
        """
        size = max(1, -(-len(indices) // (_PIECES * self._count)))
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        failed: list[bool] = []

        def task(start: int) -> Callable[[Fill], None]:
            def run(fill_: Fill) -> None:
                try:
                    if self._stopped:
                        raise RuntimeError("the workers were stopped.")
                    if not failed:
                        fill_(indices[start : start + size], [array[start : start + size] for array in out])
                    done.put(None)
                except BaseException as error:
                    failed.append(True)
                    done.put(error)

            return run

        starts = range(0, len(indices), size)
        for start in starts:
            self._tasks.put(task(start))
        # A signal must not end the wait of one of several processes: all of them must stop after the same step.
        with contextlib.nullcontext() if jax.distributed.is_initialized() else Wait():
            errors = [error for _ in starts if (error := receive(done)) is not None]
        if errors:
            raise min(errors, key=lambda error: indices.index(getattr(error, "index", None) or indices[0]))

    def _work(self, fill_: Fill) -> None:
        while (task := self._tasks.get()) is not None:
            task(fill_)
            del task  # it refers to the arrays

    def stop(self) -> None:
        """Ends the workers. Threads finish the example that they read."""
        self._stopped = True
        for _ in range(self._count):
            self._tasks.put(None)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


class WorkerProcess:
    """A process that reads examples for this one.

    It is not forked: JAX runs threads, and a fork of a process with threads may deadlock. It does not receive Ctrl-C,
    and ends with this process, however that ends.

    Args:
        name: the type of the data set, for messages.
        message: the pickled path, specs and data set.
    """

    def __init__(self, name: str, message: bytes):
        self._name = name
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", example_worker.__file__, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,
                # If the data set uses JAX, it must not take the memory of an accelerator from this process.
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
        self._connection = Connection(ours.detach())
        self._message: bytes | None = message

    def fill(self, indices: list[int], out: list[np.ndarray]) -> None:
        """Reads examples into arrays.

        Raises:
            ReadError: if an example could not be read, or the data set could not be made in the process.
            RuntimeError: if the process ended.
        """
        try:
            if self._message is not None:
                self._ask(self._message)
                self._message = None
            arrays = self._ask(pickle.dumps(indices))
        except (EOFError, OSError) as error:
            code = self._process.wait()
            how = f"by signal {-code} (9: often because memory ran out)" if code < 0 else f"with exit code {code}"
            raise RuntimeError(
                f"a worker process that read examples {indices} of the {self._name} ended {how}."
            ) from error
        for array, values in zip(out, arrays, strict=True):
            array[:] = values

    def _ask(self, message: bytes) -> Any:
        self._connection.send_bytes(message)
        answer = pickle.loads(self._connection.recv_bytes())
        if isinstance(answer, bytes) and answer:
            index, cause, name, text = pickle.loads(answer)
            error = RuntimeError(name) if cause is None else pickle.loads(cause)
            error.add_note(f"In the worker process:\n{text}")
            raise ReadError(index) from error
        return answer

    def terminate(self) -> None:
        """Asks the process to end."""
        self._process.terminate()

    def wait(self) -> None:
        """Waits until the process has ended; kills it if it does not."""
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
