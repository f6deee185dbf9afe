"""Reading ahead: a loader that takes as long as a step, against the slower of the two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import elegy as eg
from benchmarks.options import Options
from benchmarks.pairs import Row, timed

GOAL = 1.10
SECONDS = 0.02
Batch = tuple[np.ndarray, np.ndarray]


class Sleeper(eg.ElegyModule):
    """A step that takes `SECONDS` and no core of the host, as on an accelerator."""

    def init(self, key: jax.Array, inputs: jax.Array) -> Sleeper:
        return self.replace(params=jnp.ones(inputs.shape[-1]))

    def apply(self, key: jax.Array, inputs: jax.Array, training: bool) -> tuple[jax.Array, Sleeper]:
        def wait(value: Any) -> Any:
            time.sleep(SECONDS)
            return value

        zero = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), jnp.zeros(()))
        return inputs * self.params + zero, self


def sleeping(batch: Batch) -> Batch:
    """Waits, as for a disk or a network."""
    time.sleep(SECONDS)
    return batch


def numpy_work(batch: Batch) -> Batch:
    """Sorts, which releases the lock of the interpreter."""
    _work(lambda: np.sort(np.arange(20_000)[::-1]))
    return batch


def python_work(batch: Batch) -> Batch:
    """Holds the lock of the interpreter."""
    _work(lambda: sum(range(200)))
    return batch


def _work(once: Callable[[], Any]) -> None:
    end = time.thread_time() + SECONDS  # of a core, so that another program does not count as work
    while time.thread_time() < end:
        once()


def run(options: Options) -> list[Row]:
    """A loader of each kind, and one that is not read ahead."""
    steps, pairs = (30, min(options.repeats, 3)) if options.quick else (100, options.repeats)
    batch = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    trainer = eg.Trainer(Sleeper(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.0))

    def fit(data: Any, prefetch: int = 0) -> Any:
        trainer.fit(data, prefetch=prefetch, verbose=0)
        return trainer.state.params

    def compare(load: Callable[[Batch], Batch], prefetch: int, goal: float | None) -> Row:
        def batches() -> Iterator[Batch]:
            for _ in range(steps):
                yield load(batch)

        fit([batch] * 2)
        ours, theirs = [], []
        for _ in range(pairs):
            loads = timed(lambda: [load(batch) for _ in range(steps)] and None)
            theirs.append(max(loads, timed(lambda: fit([batch] * steps))) / steps * 1e3)
            ours.append(timed(lambda: fit(batches, prefetch)) / steps * 1e3)
        name = f"loader as slow as a step, {load.__name__}, prefetch={prefetch}"
        return Row(name, "the slower of the two", "ms/step", ours, theirs, goal)

    return [
        compare(sleeping, 2, GOAL),
        compare(sleeping, 0, None),
        compare(numpy_work, 2, GOAL),
        compare(python_work, 2, GOAL),
    ]
