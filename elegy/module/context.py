"""What the driver hands down to a managed step, and what the default step hands back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from elegy.data.batch import rows
from elegy.metrics import LossesAndMetrics
from elegy.pytree import Pytree, field, static_field
from elegy.strategies.strategy import Strategy
from elegy.types import Array, Batch, PyTree

LOCAL = Strategy()
"""One replica that sees the whole batch: how a step runs outside of a Trainer."""


class WholeLoss(Pytree):
    """The loss that the default step computes from a whole batch, known before its microbatches are differentiated.

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
        added: what `add_loss` added, a scalar that counts by the share of the rows.
    """

    losses: LossesAndMetrics | None = field()
    added: jax.Array = field()

    def whole(self, strategy: Strategy) -> WholeLoss:
        """The loss of the whole batch, from the losses of its microbatches, stacked on a leading axis."""
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
    """The surroundings of one managed step, held by the module in a private field while the step runs.

    The driver makes it and removes it again, so a state between steps never holds one. Its arrays are ordinary leaves:
    a step that passes its module through `jax.checkpoint` or `jax.lax.scan` passes the context along.

    Args:
        examples: the number of real examples of this replica, a float (float64 where JAX has 64 bits).
        share: this replica's part of the real examples of the whole batch, `float32[]`.
        mask: `bool[rows]`, False where a row is padding; None where all are real.
        strategy: how replicas combine.
        probe: 0, added to the loss that the default step returns: the derivative by it tells by which factor the
            step multiplied that loss.
        part: this replica's part of the loss that the default step returned, `float32[]`; the sum over replicas is
            the loss. None until the default step ran.
        loss: the loss that the default step returned.
        averaged: the fields that `apply` changed, which are averaged over the replicas.
        reported: for each call of the default step, the loss that it computed.
        whole: of a microbatch, for each call of the default step, the loss of the whole batch; None where the step sees
            all rows of its replica.
        calls: counts the calls of the default step while it is traced, or None.
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

    @classmethod
    def of(cls, batch: Batch, mask: Array | None = None, strategy: Strategy = LOCAL) -> StepContext:
        """The context of a step on one replica's rows.

        Args:
            batch: the rows of this replica.
            mask: `bool[rows]`, or None where all rows are real.
            strategy: how replicas combine.

        Example:
            >>> context = StepContext.of(jnp.zeros((3, 2)), jnp.array([True, True, False]))
            >>> context.examples.item(), context.share.item()
            (2.0, 1.0)
        """
        examples = jnp.asarray(rows(batch), float) if mask is None else jnp.sum(mask, dtype=float)
        return cls(examples, examples / jnp.maximum(strategy.sum(examples), 1.0), mask, strategy)


def average_moved(before: PyTree, after: PyTree, examples: jax.Array, strategy: Strategy) -> PyTree:
    """The leaves that a step replaced, averaged over the replicas by their examples; the others stay.

    Args:
        before: a tree before the step.
        after: the tree after it; which leaves moved is told by identity.
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
    """The fields of a module that a call changed, without those that the driver keeps equal on all replicas.

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


_DRIVEN = frozenset({"key", "params", "batch_stats", "optimizer", "losses_and_metrics", "_logs", "_step"})
