"""The context that the driver passes to a managed step, and in which the default step returns values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from elegy.data.batch import rows
from elegy.metrics import LossesAndMetrics
from elegy.module.applied import AppliedOutputs
from elegy.pytree import Pytree, field, static_field
from elegy.strategies.strategy import Strategy
from elegy.types import Array, Batch, PyTree

LOCAL = Strategy()
"""The strategy of a step outside of a Trainer: one replica with the whole batch."""


class WholeLoss(Pytree):
    """The loss of the default step for a whole batch, which is computed before microbatches are differentiated.

    Args:
        losses: the losses, their denominators summed over microbatches and replicas; None if there are none.
        loss: the loss of the whole batch, a scalar.
    """

    losses: LossesAndMetrics | None = field()
    loss: jax.Array = field()


class DefaultLoss(Pytree):
    """The loss that the default step computed from its rows.

    Args:
        losses: the losses, without metrics; None if there are none.
        added: the sum of the terms of `add_loss`, weighted by the replica's fraction of the rows.
    """

    losses: LossesAndMetrics | None = field()
    added: jax.Array = field()

    def whole(self, strategy: Strategy) -> WholeLoss:
        """Returns the loss of the whole batch from those of its microbatches, stacked on a leading axis."""
        part = jnp.sum(self.added, axis=0)
        if self.losses is None:
            return WholeLoss(None, strategy.sum(part))
        losses = self.losses.aggregate().sum_denominators(strategy.sum)
        return WholeLoss(losses, strategy.sum(losses.total_loss() + part))


class Calls:
    """Counts calls in Python, while a step is traced."""

    def __init__(self) -> None:
        self.count = 0


class StepContext(Pytree):
    """The context of one managed step, in a private field of the module while the step runs.

    The driver adds it before the step and removes it afterwards, so a state between steps has none. Its arrays are
    ordinary leaves, so they pass through `jax.checkpoint` and `jax.lax.scan` with the module.

    Args:
        examples: the number of real examples of this replica, a float (float64 with `jax_enable_x64`).
        share: this replica's fraction of the real examples of the whole batch, `float32[]`.
        mask: `bool[rows]`, False for padding; None without padding.
        strategy: how replicas combine.
        probe: 0, added to the loss of the default step. The derivative of the returned loss with respect to it is the
            factor by which the step multiplied the default loss.
        part: this replica's part of the loss that the default step returned, `float32[]`; the sum over replicas is
            the loss. None until the default step ran.
        loss: the loss that the default step returned.
        averaged: the fields that `apply` changed, which are averaged over the replicas.
        reported: for each call of the default step, the loss that it computed.
        whole: in a microbatch, for each call of the default step, the loss of the whole batch; None if the step gets
            all rows of its replica.
        calls: counts the calls of the default step while it is traced, or None.
        applied: the structure of the outputs of `apply` in the last call of the default step, or None.
    """

    examples: jax.Array = field()
    share: jax.Array = field()
    mask: Array | None = field(default=None)
    strategy: Strategy = static_field(default=LOCAL)
    probe: jax.Array | float = field(default=0.0)
    part: jax.Array | None = field(default=None)
    loss: jax.Array | None = field(default=None)
    averaged: tuple[str, ...] = static_field(default=())
    reported: tuple[DefaultLoss, ...] = field(default=())
    whole: tuple[WholeLoss, ...] | None = field(default=None)
    calls: Calls | None = static_field(default=None)
    applied: AppliedOutputs | None = static_field(default=None)

    @classmethod
    def of(cls, batch: Batch, mask: Array | None = None, strategy: Strategy = LOCAL) -> StepContext:
        """Makes the context of a step for the rows of one replica.

        Args:
            batch: the rows of this replica.
            mask: `bool[rows]`, False for padding, or None.
            strategy: how replicas combine.

        Example:
            >>> context = StepContext.of(jnp.zeros((3, 2)), jnp.array([True, True, False]))
            >>> context.examples.item(), context.share.item()
            (2.0, 1.0)
        """
        examples = jnp.asarray(rows(batch), float) if mask is None else jnp.sum(mask, dtype=float)
        return cls(examples, examples / jnp.maximum(strategy.sum(examples), 1.0), mask, strategy)


def average_moved(before: PyTree, after: PyTree, examples: jax.Array, strategy: Strategy) -> PyTree:
    """Averages the leaves that a step replaced over the replicas, weighted by their examples.

    Args:
        before: a tree before the step.
        after: the tree after the step; leaves are compared by identity.
        examples: the number of real examples of this replica.
        strategy: how replicas combine.
    """
    leaves, treedef = jax.tree.flatten(after)
    known = {id(leaf) for leaf in jax.tree.leaves(before)}
    moved = [i for i, leaf in enumerate(leaves) if id(leaf) not in known]
    if not moved:
        return after
    for i, leaf in zip(moved, strategy.mean([leaves[i] for i in moved], examples), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(treedef, leaves)


def moved_fields(before: Any, after: Any) -> tuple[str, ...]:
    """Returns the names of the fields that a call changed, without those that the driver keeps equal on all replicas.

    Args:
        before: the module before the call.
        after: the module that the call returned.
    """
    driven = {id(leaf) for leaf in jax.tree.leaves((after.get_params(), after.get_batch_stats()))}
    moved = []
    for name in type(after).__dataclass_fields__:
        if name in _DRIVEN:
            continue
        leaves, old = ({id(leaf) for leaf in jax.tree.leaves(getattr(one, name))} for one in (after, before))
        if leaves - old and driven.isdisjoint(leaves):
            moved.append(name)
    return tuple(moved)


_DRIVEN = frozenset(
    {
        "key",
        "params",
        "batch_stats",
        "optimizer",
        "losses_and_metrics",
        "averaged_params",
        "dynamic_loss_scale",
        "_logs",
        "_step",
    }
)
