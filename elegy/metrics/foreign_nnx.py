"""Metrics of `flax.nnx`."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp

from elegy.lazy import require
from elegy.losses.arguments import call_with_named, names_argument
from elegy.metrics.foreign_state import ForeignMetric, library_arguments, strong
from elegy.names import name_of
from elegy.pytree import static_field


class NnxMetric(ForeignMetric):
    """A metric of `flax.nnx.metrics`; the user's object is never changed.

    Args:
        metric: an `Average`, `Accuracy`, `Welford`, an object of a subclass, or a `MultiMetric` of them.
        name: the name in the logs.

    Raises:
        TypeError: if the metric is of another class, whose states cannot be merged.

    Example:
        >>> from flax import nnx
        >>> metric = NnxMetric(nnx.metrics.Accuracy())
        >>> metric.update(target=jnp.array([0, 1]), preds=jnp.array([[2.0, 1.0], [2.0, 1.0]])).compute().item()
        0.5
    """

    graph: Any = static_field(kw_only=True)

    def __init__(self, metric: Any, name: str | None = None):
        nnx: Any = require("flax.nnx", "a metric of flax.nnx")
        _check_mergeable(metric, nnx)
        graph, state = nnx.split(metric)
        vars(self).update(
            graph=graph,
            state=strong(nnx.as_pure(state)),
            name=name or name_of(metric),
            collection=name is None and isinstance(metric, nnx.MultiMetric),
        )
        vars(self).update(state=self.empty())

    def _object(self) -> Any:
        nnx: Any = require("flax.nnx", "a metric of flax.nnx")
        return nnx.merge(self.graph, self.state, copy=True)

    def _with(self, metric: Any) -> Self:
        nnx: Any = require("flax.nnx", "a metric of flax.nnx")
        return self.with_state(nnx.as_pure(nnx.state(metric)))

    def empty(self) -> Any:
        """Returns the state without data."""
        metric = self._object()
        metric.reset()
        return self._with(metric).state

    def update(self, **kwargs: Any) -> Self:
        """Returns the metric with a batch added.

        Args:
            **kwargs: the arguments of the metric's `update`.

        Raises:
            TypeError: if a required argument is missing.
        """
        metric = self._object()
        call_with_named(metric.update, library_arguments(kwargs), f"the metric {self.name!r}")
        return self._with(metric)

    def merge(self, other: Self) -> Self:
        """Returns the metric of both metrics' data.

        Args:
            other: a metric of the same structure.
        """
        metric = self._object()
        _merge_nnx(metric, other._object())
        return self._with(metric)

    def compute(self) -> Any:
        """Returns the value of the metric; statistics as a dict."""
        return jax.tree.map(
            lambda value: value if hasattr(value, "dtype") else dict(vars(value)),
            self._object().compute(),
            is_leaf=lambda value: hasattr(value, "standard_deviation"),
        )

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """True if the metric's `update` names `mask`.

        Args:
            batch_size: the number of rows.
            **kwargs: the arguments of `update`.
        """
        return names_argument(self._object().update, "mask")


def _parts(metric: Any, nnx: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(metric).items() if isinstance(value, nnx.Metric)}


def _check_mergeable(metric: Any, nnx: Any) -> None:
    if isinstance(metric, nnx.MultiMetric):
        for part in _parts(metric, nnx).values():
            _check_mergeable(part, nnx)
    elif not isinstance(metric, (nnx.metrics.Average, nnx.metrics.Welford)):
        raise TypeError(
            f"the nnx metric {type(metric).__name__} has no way to merge its states of several batches or devices. "
            "Average, Accuracy, Welford, their subclasses and MultiMetrics of them are supported; write others as an "
            "elegy.metrics.Metric with `merge`."
        )


def _merge_nnx(metric: Any, other: Any) -> None:
    """Merges `other` into `metric`, in place."""
    nnx: Any = require("flax.nnx", "a metric of flax.nnx")
    if isinstance(metric, nnx.MultiMetric):
        for key, part in _parts(metric, nnx).items():
            _merge_nnx(part, getattr(other, key))
    elif isinstance(metric, nnx.metrics.Average):
        metric.total[...] = metric.total[...] + other.total[...]
        metric.count[...] = metric.count[...] + other.count[...]
    else:
        ours, theirs = metric.count[...], other.count[...]
        count = ours + theirs
        part = theirs / jnp.maximum(count, 1)
        difference = other.mean[...] - metric.mean[...]
        metric.m2[...] = metric.m2[...] + other.m2[...] + difference**2 * ours * part
        metric.mean[...] = metric.mean[...] + difference * part
        metric.count[...] = count
