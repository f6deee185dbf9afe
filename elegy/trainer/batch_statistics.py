"""Batch statistics of other parameters than those of the training: their mean over the batches of some data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.adapters.lora import LoRAModule
from elegy.data import ArraySource, unpack
from elegy.data.columns import Given
from elegy.data.plan import DEFAULT_BATCH_SIZE
from elegy.data.sources import source_of
from elegy.errors import StepError
from elegy.integers import positive_int, positive_int_or_none
from elegy.lazy import is_instance_of
from elegy.module import high_level
from elegy.module.averaging import Weights, with_weights
from elegy.names import path_name
from elegy.trainer.one_fit import not_in_fit
from elegy.trainer.session import Session
from elegy.types import PyTree

_WHAT = "update_batch_stats"


def update_batch_stats(session: Session, given: Given, batch_size: Any, steps: Any, weights: Weights | None) -> None:
    """Replaces the batch statistics of the state; see `Trainer.update_batch_stats`."""
    steps = positive_int_or_none("steps", steps)
    size = DEFAULT_BATCH_SIZE if batch_size is None else positive_int("batch_size", batch_size)
    _check(session)
    state: Any = session.state
    if weights is None:
        weights = "trained" if state.averaged_params is None else "averaged"
    source = source_of(given, what="predict", known=session.input_tree, batch_size=batch_size)
    means = _Means(with_weights(state, weights))
    with source.reading():
        for inputs in _inputs(source, size, steps):
            means.add(inputs)
    session.state = state.set_batch_stats(means.result())


def _check(session: Session) -> None:
    not_in_fit(session, _WHAT)
    if session.strategy.processes > 1:
        raise RuntimeError(f"{_WHAT} runs in one process, but the strategy has {session.strategy.processes}.")
    if not session.initialized:
        raise StepError(f"{_WHAT}: there is no state yet: fit, or call init_on_batch first.")
    state: Any = session.state
    name = type(state).__name__
    if not high_level.runs_apply(state):
        raise StepError(f"{_WHAT} runs `apply` in training mode, which {name} does not implement.")
    if not jax.tree.leaves(state.get_batch_stats()):
        raise ValueError(f"{name} has no batch statistics: {_WHAT} is for modules with batch normalisation.")
    inner = state.base if isinstance(state, LoRAModule) else state
    if is_instance_of(inner, "elegy.adapters.equinox", "EquinoxModule"):
        raise ValueError(
            f"{_WHAT} cannot average the state of Equinox modules, whose layers count their steps in it: run "
            "`trainer.state.apply(key, inputs, True)` over the data instead."
        )


def _inputs(source: Any, size: int, steps: int | None) -> Iterator[PyTree]:
    """Yields the inputs of each batch, in the order of the data."""
    if isinstance(source, ArraySource):
        starts = range(0, source.size, size)
        for start in itertools.islice(starts, steps):
            yield unpack(source.slice(start, min(start + size, source.size)))[0]
        return
    for batch in itertools.islice(source.batches(), steps):
        yield unpack(batch)[0]


class _Means:
    """Averages what the layers of a module compute from batches, without their momentum.

    A layer updates a statistic as `momentum * old + (1 - momentum) * new`. Updates of zeros and of ones give the
    momentum and, for every batch, `(1 - momentum) * new`.

    Args:
        state: the state with the parameters to use.
    """

    def __init__(self, state: Any):
        self._name, self._key = type(state).__name__, state.key
        self._leaves, treedef = jax.tree.flatten(state)
        found = jax.tree_util.tree_flatten_with_path(state.get_batch_stats())
        self._stats, self._stats_tree = [leaf for _, leaf in found[0]], found[1]
        self._paths = [path_name(path) for path, _ in found[0]]
        self._moved = [True] * len(self._stats)
        self._count, self._kept = 0, [1.0] * len(self._stats)
        self._mean = [jnp.zeros_like(leaf) for leaf in self._stats]

        def update(leaves: list[Any], stats: list[Any], key: jax.Array, inputs: PyTree) -> list[Any]:
            state = jax.tree.unflatten(treedef, leaves)
            state = state.set_batch_stats(jax.tree.unflatten(self._stats_tree, stats))
            after = high_level.apply(state, key, inputs, training=True)[1]
            new = jax.tree.leaves(after.get_batch_stats())
            self._moved = [a is not b for a, b in zip(new, stats, strict=True)]
            return new

        def move(mean: list[Any], count: jax.Array, *arguments: Any) -> list[Any]:
            return [old + (new - old) / count for old, new in zip(mean, update(*arguments), strict=True)]

        self._update, self._move = jax.jit(update), jax.jit(move)

    def add(self, inputs: PyTree) -> None:
        """Adds a batch."""
        key = jax.random.fold_in(self._key, self._count)
        if not self._count:
            self._find_momenta(key, inputs)
        self._count += 1
        self._mean = self._move(self._mean, jnp.float32(self._count), self._leaves, self._filled(0.0), key, inputs)

    def _filled(self, value: float) -> list[Any]:
        """Returns the statistics, with one value in those that a training step changes."""
        both = zip(self._stats, self._moved, strict=True)
        return [jnp.full_like(leaf, value) if moved else leaf for leaf, moved in both]

    def _find_momenta(self, key: jax.Array, inputs: PyTree) -> None:
        jax.eval_shape(self._update, self._leaves, self._stats, key, inputs)  # finds what moves
        if not any(self._moved):
            raise ValueError(f"no batch statistic of {self._name} changes in a training step.")
        zeros, ones = (self._update(self._leaves, self._filled(value), key, inputs) for value in (0.0, 1.0))
        problems = []
        for i, (path, moved) in enumerate(zip(self._paths, self._moved, strict=True)):
            if not moved or self._hidden(path) is not None:
                continue
            slope = np.asarray(ones[i], np.float64) - np.asarray(zeros[i], np.float64)
            # A momentum is a short decimal number, which float32 has rounded.
            momentum = round(float(slope.flat[0]), 6) if slope.size else 0.0
            tolerance = 1e-5 * (1 + np.abs(np.asarray(zeros[i], np.float64)))
            if not (0 <= momentum < 1 and np.all(np.abs(slope - momentum) <= tolerance)):
                problems.append(path)
            self._kept[i] = 1 - momentum
        if problems:
            raise ValueError(
                f"{_WHAT} averages statistics that a step updates as `momentum * old + (1 - momentum) * new`, but "
                f"{self._name} updates these in another way: {', '.join(problems)}."
            )

    def _hidden(self, path: str) -> int | None:
        """Returns the index of the running sum that belongs to an average of `haiku.ExponentialMovingAverage`."""
        parent, _, last = path.rpartition("/")
        other = f"{parent}/hidden"
        return self._paths.index(other) if last == "average" and other in self._paths else None

    def result(self) -> PyTree:
        """Returns the batch statistics."""
        values = []
        for leaf, mean, moved, kept in zip(self._stats, self._mean, self._moved, self._kept, strict=True):
            values.append(np.asarray(mean, np.float64) / kept if moved else leaf)
        for i, path in enumerate(self._paths):
            hidden = self._hidden(path)
            if hidden is not None and self._moved[i]:
                values[i] = values[hidden]
                values[hidden] = values[hidden] * _debias(self._stats[hidden], self._stats[i])
        new = [jnp.asarray(value, leaf.dtype) for value, leaf in zip(values, self._stats, strict=True)]
        return jax.tree.unflatten(self._stats_tree, new)


def _debias(hidden: Any, average: Any) -> float:
    """Returns `1 - decay ** count`, by which Haiku divides the running sum `hidden`; 1 if it does not."""
    hidden, average = np.asarray(hidden, np.float64).ravel(), np.asarray(average, np.float64).ravel()
    largest = int(np.argmax(np.abs(average))) if average.size else 0
    return float(hidden[largest] / average[largest]) if average.size and average[largest] else 0.0
