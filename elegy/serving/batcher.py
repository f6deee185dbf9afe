"""Puts the rows of concurrent requests into one batch: one thread runs the model, requests wait for their rows."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from elegy.serving.model import Served
from elegy.types import PyTree


class _Request(NamedTuple):
    inputs: PyTree
    rows: int
    result: Future[PyTree]


class Batcher:
    """Runs requests in batches.

    A batch is filled up to a power of two of rows with copies of its last row, so that few sizes are compiled. Requests
    of more rows than a batch has run in several. If the outputs of a row depend on the other rows of a batch, every
    request runs alone.

    Args:
        served: what runs.
        max_batch_size: the largest number of rows of a batch.
        max_wait: the seconds for which the first request of a batch waits for others.

    Attributes:
        joins: whether requests are put together.
        requests: how many were answered.
        batches: in how many batches.
    """

    def __init__(self, served: Served, max_batch_size: int, max_wait: float):
        self._served, self._most, self._wait = served, max_batch_size, max_wait
        self.joins = served.has_independent_rows()
        self.requests = self.batches = 0
        self._queue: queue.Queue[_Request | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="elegy-serving", daemon=True)
        self._thread.start()

    def submit(self, inputs: PyTree) -> Future[PyTree]:
        """Queues a request of at least one row.

        Args:
            inputs: NumPy arrays.

        Returns:
            The outputs, when they are there.
        """
        result: Future[PyTree] = Future()
        self._queue.put(_Request(inputs, len(jax.tree.leaves(inputs)[0]), result))
        return result

    def close(self) -> None:
        """Answers what is queued, and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        request = self._queue.get()
        while request is not None:
            taken, request = self._gather(request)
            self._answer(taken)
            request = self._queue.get() if request is _NOTHING else request

    def _gather(self, first: _Request) -> tuple[list[_Request], Any]:
        """Takes requests until a batch is full, or the first has waited; the second result is the next request."""
        taken, rows = [first], first.rows
        deadline = time.monotonic() + self._wait
        while self.joins and rows < self._most:
            try:
                following = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if following is None or rows + following.rows > self._most:
                return taken, following
            taken.append(following)
            rows += following.rows
        return taken, _NOTHING

    def _answer(self, requests: list[_Request]) -> None:
        waiting = [one for one in requests if one.result.set_running_or_notify_cancel()]
        if not waiting:
            return
        try:
            inputs = jax.tree.map(lambda *parts: np.concatenate(parts), *(one.inputs for one in waiting))
            outputs = self._outputs(inputs, sum(one.rows for one in waiting))
        except Exception as error:  # every request of the batch gets it
            for one in waiting:
                one.result.set_exception(error)
            return
        self.requests += len(waiting)
        start = 0
        for one in waiting:
            rows = slice(start, start + one.rows)
            start += one.rows
            one.result.set_result(jax.tree.map(lambda leaf, rows=rows: leaf[rows], outputs) if self.joins else outputs)

    def _outputs(self, inputs: PyTree, rows: int) -> PyTree:
        if not self.joins:
            self.batches += 1
            return self._served.predict(inputs)
        parts = []
        for start in range(0, rows, self._most):
            count = min(self._most, rows - start)
            places = start + np.minimum(np.arange(min(self._most, _power_of_two(count))), count - 1)
            outputs = self._served.predict(jax.tree.map(lambda leaf, places=places: leaf[places], inputs))
            parts.append(jax.tree.map(lambda leaf, count=count: leaf[:count], outputs))
            self.batches += 1
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


_NOTHING: Any = object()


def _power_of_two(count: int) -> int:
    """Returns the smallest power of two that is not below a count.

    Example:
        >>> _power_of_two(1), _power_of_two(5), _power_of_two(8)
        (1, 8, 8)
    """
    return 1 << (count - 1).bit_length()
