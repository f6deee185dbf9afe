"""Negative log-likelihood of targets under predicted distributions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.loss import Loss, align_counts, counted
from elegy.losses.shapes import array_shape
from elegy.names import array_name, distribution_shapes

_WHAT = "NegativeLogLikelihood"


def negative_log_likelihood(target: ArrayLike, preds: Any) -> jax.Array:
    """Computes `-preds.log_prob(target)`.

    Args:
        target: `(*batch_shape, *event_shape)`; one trailing axis of size 1 may be missing or be added. A distribution
            that is the same for all examples (a density without inputs) has no axis of examples, or one of size 1.
        preds: a distribution of NumPyro, Distrax or TensorFlow Probability on JAX, or any object with `log_prob`.

    Returns:
        The shape of the target without the event shape: `(B,)`, or `(B, ...)` if an example has several distributions.

    Raises:
        TypeError: if `preds` has no method `log_prob`.
        ValueError: if the shape of the target does not fit the distribution's batch and event shape.

    Example:
        >>> import numpyro.distributions as dist
        >>> negative_log_likelihood(jnp.zeros((3, 1)), dist.Normal(jnp.zeros(3), 1.0)).shape
        (3,)
    """
    if not callable(getattr(preds, "log_prob", None)):
        raise TypeError(
            f"{_WHAT}: preds is {array_name(preds)}, which has no method `log_prob`. Return a distribution from the "
            "module, for example `numpyro.distributions.Normal(mean, scale)`; for arrays of class scores use "
            "CrossEntropy, for arrays of means MeanSquaredError."
        )
    return jnp.asarray(-preds.log_prob(_fitted(target, preds)))


class NegativeLogLikelihood(Loss):
    """Negative log-likelihood of targets under predicted distributions (see `negative_log_likelihood`).

    If an example has several distributions (a batch shape `(B, D)`), their values are averaged like other values of an
    example. For the joint likelihood of a vector, make its axis part of the event: `.to_event(1)` of NumPyro,
    `distrax.Independent`. A target of weight 0 may be outside of the support, such as a missing count of -1.

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> import numpyro.distributions as dist
        >>> loss = NegativeLogLikelihood()
        >>> loss(target=jnp.array([0.0, 2.0]), preds=dist.Normal(jnp.array([0.0, 1.0]), 1.0)).round(4).item()
        1.1689...
    """

    def call(self, target: ArrayLike, preds: Any) -> jax.Array:
        """Computes the values (see `negative_log_likelihood`).

        Args:
            target: `(*batch_shape, *event_shape)`.
            preds: a distribution.
        """
        return negative_log_likelihood(target, preds)

    def _guard_rows(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Replaces targets of weight 0, and parameters there that are not finite, by those of an entry that counts.

        A finite target outside of the support can have an infinite gradient, which a weight of 0 turns into NaN. If no
        entry counts, the parameters get no gradient.
        """
        counts, target = counted(kwargs), kwargs.get("target")
        shape = array_shape(target)
        if not counts or not shape:
            return kwargs
        target = jnp.asarray(target)
        for count in counts:
            kept = align_counts(count, shape)
            if kept is not None:
                target = jnp.where(kept, target, _first(target, kept))
        some = functools.reduce(jnp.logical_and, (count.any() for count in counts))

        def guard(leaf: Any) -> Any:
            if array_shape(leaf) is None or not jnp.issubdtype(leaf.dtype, jnp.inexact):
                return leaf
            leaf = jnp.asarray(leaf)
            for count in counts:
                kept = align_counts(count, leaf.shape) if leaf.ndim else None
                if kept is not None:
                    leaf = jnp.where(kept | jnp.isfinite(leaf), leaf, _first(leaf, kept))
            return jnp.where(some, leaf, jax.lax.stop_gradient(leaf))

        return {**kwargs, "target": target, "preds": jax.tree.map(guard, kwargs.get("preds"))}


def _first(values: jax.Array, kept: jax.Array) -> jax.Array:
    """Returns the first entry for which `kept` is True; an entry of a target is a whole event, never a part of it."""
    axes = max((axis + 1 for axis, size in enumerate(kept.shape) if size > 1), default=1)
    lead = values.shape[:axes]
    flat = jnp.broadcast_to(kept.reshape(kept.shape[:axes]), lead).reshape(-1)
    return values.reshape(flat.size, *values.shape[axes:])[jnp.argmax(flat)]


def _fitted(target: Any, preds: Any) -> Any:
    """Returns a target whose last axes have the batch and event shape of a distribution, or broadcast with them.

    Raises:
        ValueError: if the shapes do not fit, or `log_prob` would broadcast different examples with one another.
    """
    shapes, shape = distribution_shapes(preds), array_shape(target)
    if shapes is None or shape is None:
        return target
    batch, event = shapes
    wanted = (*batch, *event)
    if shape == (*wanted, 1):
        return jnp.asarray(target)[..., 0]
    if wanted == (*shape, 1):
        return jnp.asarray(target)[..., None]
    lead = shape[: len(shape) - len(event)]
    tail = lead[len(lead) - len(batch) :]
    fits = len(shape) >= len(wanted) and shape[len(lead) :] == event
    if fits and all(size in (1, rows) for size, rows in zip(batch, tail, strict=True)):
        return target
    raise ValueError(
        f"{_WHAT}: target has shape {shape}, and preds is a {type(preds).__name__} with batch shape {batch} and event "
        f"shape {event}. A target has the batch shape followed by the event shape, {wanted}. If the last axes of the "
        "parameters belong to one example, make them part of the event: `.to_event(1)` of NumPyro, "
        "`distrax.Independent(distribution, reinterpreted_batch_ndims=1)`."
    )
