"""Gradient accumulation: one step over a batch, computed in microbatches, that equals the step over the whole batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elegy.data.batch import rows
from elegy.errors import StepError
from elegy.flat import eval_shape
from elegy.losses.numbers import at_least_float32
from elegy.module.context import Calls, DefaultLoss, StepContext, WholeLoss
from elegy.module.finite import outline
from elegy.module.logs import Entry
from elegy.module.several_losses import value_and_grads
from elegy.types import Array, Batch, PyTree

Objective = Callable[[PyTree, Any, Any, StepContext, jax.Array, Batch], tuple[Any, tuple[Any, Any]]]
"""`(params, probe, module, context, key, batch) -> (part of the loss or losses, (loss or None, module))`."""


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """The rows of a batch, cut into microbatches.

    Args:
        number: the number of parts of equal size.
        full: the batch and its mask in parts of equal size, arrays of shape `(rows, number, ...)`.
        rest: the batch and its mask in one smaller part, arrays of shape `(rows, ...)`; None if nothing is left.
    """

    number: int
    full: PyTree
    rest: PyTree | None

    def __getitem__(self, index: Any) -> PyTree:
        """Returns the batch and the mask of a microbatch of full size; the index may be traced."""
        # The indexed axis is not divided over devices, and the batch is not copied.
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 1, keepdims=False), self.full)


def cut(batch: Batch, mask: Array | None, count: int) -> Microbatches:
    """Cuts a batch into `count` microbatches, or fewer if it has too few rows.

    Microbatch `i` of `n` has the rows `i, i + n, i + 2 * n, ...`, so that each has rows on all devices over which the
    batch is divided. The remaining rows are a smaller last microbatch.

    Args:
        batch: arrays of shape `(rows, ...)`.
        mask: `bool[rows]` or None.
        count: the number of microbatches.

    Example:
        >>> parts = cut(jnp.arange(8), None, 3)
        >>> parts[0][0].tolist(), parts[1][0].tolist(), parts.rest[0].tolist()
        ([0, 2, 4], [1, 3, 5], [6, 7])
    """
    total = rows(batch)
    size = -(-total // count)
    full = total // size

    def stack(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)[: full * size]
        return leaf.reshape(size, full, *leaf.shape[1:])

    rest = jax.tree.map(lambda leaf: leaf[full * size :], (batch, mask)) if total % size else None
    return Microbatches(full, jax.tree.map(stack, (batch, mask)), rest)


class _Outline(NamedTuple):
    """The properties of one microbatch's step, found by tracing it.

    Args:
        keeps_structure: True if it keeps the structure, the shapes and the dtypes of the module.
        moved: positions of the leaves of the module that it changes.
        entries: its log entries, without values.
        updates: the tree definition of the updates of those logs.
        reported: the tree definition of the losses of the default step, a tuple with one element for each call.
        averaged: the names of the fields that `apply` changed.
        losses: the tree definition of the loss, or of several.
    """

    keeps_structure: bool
    moved: list[int]
    entries: tuple[Entry, ...]
    updates: Any
    reported: Any
    averaged: tuple[str, ...]
    losses: Any


class Accumulation:
    """An objective over a batch that is cut into microbatches.

    A first pass sums the denominators of the losses over all microbatches and replicas; the compiler removes the rest
    of its computation. A second pass sums the gradients of each microbatch's part of the loss. Each microbatch starts
    with the batch statistics and the other fields that the one before it returned.

    Args:
        objective: one step; see `Objective`.
        module: the state.
        params: its parameters.
        context: the context of the whole batch on this replica.
        key: this step's key, into which each microbatch folds its index.
        batch: the rows of this replica.
        count: the number of microbatches.

    Raises:
        StepError: if a step calls the default step, but does not return the module that this call returned.
    """

    def __init__(
        self,
        objective: Objective,
        module: Any,
        params: PyTree,
        context: StepContext,
        key: jax.Array,
        batch: Batch,
        count: int,
    ):
        self._objective, self._module, self._context, self._key = objective, module, context, key
        self._parts = cut(batch, context.mask, count)
        self._leaves, self._treedef = jax.tree.flatten(module)
        self._outline = self._trace(params)

    @property
    def keeps_structure(self) -> bool:
        """True if the step keeps the structure of its module, without which microbatches cannot be scanned."""
        return self._outline.keeps_structure

    def differentiate(self, params: PyTree, probe: jax.Array) -> tuple[tuple[jax.Array, tuple[Any, Any]], tuple]:
        """Computes `value_and_grads` for the whole batch.

        Args:
            params: the parameters.
            probe: 0, of the dtype of the objective.

        Returns:
            `((value, (loss, module)), (grads, factor))`; the gradients are float32 or wider, and the module's pending
            logs are those of the whole batch.
        """
        found, whole = self._outline, self._whole(params)

        def step(carry: Any, index: Any, part: Any) -> tuple[Any, Any]:
            moved, sums = carry
            context, key = self._context_of(part, whole), jax.random.fold_in(self._key, index)
            (value, (loss, state)), grads = value_and_grads(
                self._objective, params, probe, self._at(moved), context, key, part[0]
            )
            updates = [entry.updates(context.examples) for entry in state._logs.pending]
            weighted = None if loss is None else loss * context.examples
            return (self._moved(state), _add(sums, (value, grads))), (jax.tree.leaves(updates), weighted)

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, at_least_float32(leaf.dtype)), (params, probe))
        sums = jax.tree.unflatten(found.losses, [jnp.zeros_like(probe)] * found.losses.num_leaves)
        start = ([jnp.asarray(self._leaves[i]) for i in found.moved], (sums, zeros))
        (moved, (value, grads)), (leaves, losses) = self._scan(step, start)
        updates = jax.tree.unflatten(found.updates, leaves)
        pending = tuple(
            entry.replace(value=update.aggregate()) for entry, update in zip(found.entries, updates, strict=True)
        )
        context = self._context.replace(averaged=found.averaged, loss=whole[-1].loss if whole else None)
        state = self._at(moved)
        state = state.replace(_logs=state._logs.replace(pending=pending), _step=context)
        loss = None if losses is None else jnp.sum(losses, axis=0) / jnp.maximum(context.examples, 1)
        return (value, (loss, state)), grads

    def value(self, params: PyTree) -> jax.Array:
        """Returns the objective of the whole batch for given parameters, without keeping activations."""
        whole = self._whole(params)

        def step(carry: Any, index: Any, part: Any) -> tuple[Any, None]:
            moved, total = carry
            context, key = self._context_of(part, whole), jax.random.fold_in(self._key, index)
            value, (_, state) = self._objective(params, 0.0, self._at(moved), context, key, part[0])
            return (self._moved(state), total + value), None

        start = [jnp.asarray(self._leaves[i]) for i in self._outline.moved]
        zero = jnp.zeros((), eval_shape(lambda: self._objective(*self._first(params))[0]).dtype)
        return self._scan(jax.checkpoint(step, prevent_cse=False), (start, zero))[0][1]

    def _whole(self, params: PyTree) -> tuple[WholeLoss, ...]:
        """Returns the losses of the whole batch, one for each call of the default step."""
        if not self._outline.reported.num_leaves:
            return ()

        def step(moved: Any, index: Any, part: Any) -> tuple[Any, Any]:
            context, key = self._context_of(part), jax.random.fold_in(self._key, index)
            _, (_, state) = self._objective(params, 0.0, self._at(moved), context, key, part[0])
            return self._moved(state), jax.tree.leaves(state._step.reported)

        _, leaves = self._scan(step, [jnp.asarray(self._leaves[i]) for i in self._outline.moved])
        reported: tuple[DefaultLoss, ...] = jax.tree.unflatten(self._outline.reported, leaves)
        return jax.lax.stop_gradient(tuple(one.whole(self._context.strategy) for one in reported))

    def _scan(self, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any) -> tuple[Any, Any]:
        """Runs `step(carry, index, part) -> (carry, out)` over the microbatches; returns the outs stacked."""
        parts = self._parts
        if self._context.strategy.compiles:
            carry, outs = jax.lax.scan(lambda carry, i: step(carry, i, parts[i]), carry, jnp.arange(parts.number))
        else:  # in Python, as everything else: a debugger sees values
            several = []
            for i in range(parts.number):
                carry, out = step(carry, jnp.asarray(i), parts[i])
                several.append(out)
            outs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
        if parts.rest is not None:
            carry, last = step(carry, jnp.asarray(parts.number), parts.rest)
            outs = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), outs, last)
        return carry, outs

    def _context_of(
        self, part: Any, whole: tuple[WholeLoss, ...] | None = None, calls: Calls | None = None
    ) -> StepContext:
        """Returns the context of one microbatch, with its fraction of the whole batch's examples over all replicas."""
        batch, mask = part
        one = StepContext.of(batch, mask)
        share = self._context.share * one.examples / jnp.maximum(self._context.examples, 1.0)
        return one.replace(share=share, strategy=self._context.strategy, whole=whole, calls=calls)

    def _at(self, moved: list[Any]) -> Any:
        """Returns the module with other values in the leaves that a step changes."""
        leaves = list(self._leaves)
        for i, leaf in zip(self._outline.moved, moved, strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(self._treedef, leaves)

    def _moved(self, state: Any) -> list[Any]:
        """Returns the leaves that a step changes, from the module that it returned."""
        leaves = jax.tree.leaves(self._settled(state))
        return [_strong(leaves[i]) for i in self._outline.moved]

    def _settled(self, state: Any) -> Any:
        """Returns the module that a step returned, without its context and pending logs."""
        logs = state._logs.replace(pending=())
        return state.set_params(self._module.get_params()).replace(_step=None, _logs=logs)

    def _first(self, params: PyTree, calls: Calls | None = None) -> tuple:
        part = self._parts[0]
        return params, 0.0, self._module, self._context_of(part, calls=calls), self._key, part[0]

    def _trace(self, params: PyTree) -> _Outline:
        found: list[_Outline] = []

        def step(params: PyTree) -> None:
            calls = Calls()
            losses, (_, state) = self._objective(*self._first(params, calls))
            reported = () if state._step is None else state._step.reported
            if len(reported) != calls.count:
                raise StepError(
                    f"{type(self._module).__name__}.managed_train_step calls the default step or `compute_loss`, but "
                    "does not return the module that it got from there. With `accumulate`, the losses of all "
                    "microbatches are found in it: return that module, and for a second loss call "
                    "`super(type(module), module).managed_train_step(...)` or `module.compute_loss(...)`."
                )
            updates = [entry.updates(jnp.ones(())) for entry in state._logs.pending]
            settled, before = self._settled(state), self._leaves
            after, alike = jax.tree.leaves(settled), outline(settled) == outline(self._module)
            found.append(
                _Outline(
                    alike,
                    [i for i, leaf in enumerate(before) if after[i] is not leaf] if alike else [],
                    tuple(entry.replace(value=None) for entry in state._logs.pending),
                    jax.tree.structure(updates),
                    jax.tree.structure(reported),
                    () if state._step is None else state._step.averaged,
                    jax.tree.structure(losses),
                )
            )

        eval_shape(step, params)
        return found[-1]


def whole_batch(
    objective: Objective,
    module: Any,
    params: PyTree,
    context: StepContext,
    key: jax.Array,
    batch: Batch,
    count: int,
) -> tuple[Callable[..., Any], Callable[[PyTree], jax.Array]]:
    """Makes the objective of a batch, in microbatches if `count` is greater than 1.

    Args:
        objective: one step; see `Objective`.
        module: the state.
        params: its parameters.
        context: of the whole batch on this replica.
        key: this step's key.
        batch: the rows of this replica.
        count: the number of microbatches.

    Returns:
        `(differentiate, value)`: a function of the parameters and the probe with the result of
        `value_and_grads`; the value as a function of the parameters.
    """
    if count > 1:
        cut_up = Accumulation(objective, module, params, context, key, batch, count)
        if cut_up.keeps_structure:  # otherwise the caller reports what the step changed
            return cut_up.differentiate, cut_up.value

    def differentiate(params: PyTree, probe: jax.Array) -> Any:
        return value_and_grads(objective, params, probe, module, context, key, batch)

    return differentiate, lambda params: objective(params, 0.0, module, context, key, batch)[0]


def _add(sums: PyTree, more: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, more)


def _strong(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, leaf.dtype) if jax.typeof(leaf).weak_type else leaf
