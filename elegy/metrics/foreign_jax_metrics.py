"""Metrics of `jax_metrics`."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp

from elegy.lazy import is_instance_of
from elegy.losses.arguments import ALIASES, call_with_named, names_argument
from elegy.metrics.foreign_state import ForeignMetric, library_arguments, strong
from elegy.names import name_of


class JaxMetricsMetric(ForeignMetric):
    """A metric of `jax_metrics`.

    The library's own metrics are sums. They are merged here, because the library uses `jax.tree_map`, which JAX has
    removed.

    Args:
        metric: the metric.
        name: the name in the logs.
    """

    def __init__(self, metric: Any, name: str | None = None):
        is_set = is_instance_of(metric, "jax_metrics", "Metrics", "Losses", "AuxMetrics")
        vars(self).update(state=_reset(metric), name=name or name_of(metric), collection=name is None and is_set)

    def empty(self) -> Any:
        """Returns the state without data."""
        return _reset(self.state)

    def update(self, **kwargs: Any) -> Self:
        """Returns the metric with a batch added.

        Args:
            **kwargs: the arguments of the metric's `update`.

        Raises:
            TypeError: if a required argument is missing.
        """
        available = {k: v for k, v in library_arguments(kwargs).items() if k not in ALIASES}
        return self.with_state(call_with_named(self.state.update, available, f"the metric {self.name!r}"))

    def _is_theirs(self, method: str) -> bool:
        return getattr(type(self.state), method).__module__.partition(".")[0] == "jax_metrics"

    def merge(self, other: Self) -> Self:
        """Returns the metric of both metrics' data.

        Args:
            other: a metric of the same structure.
        """
        if self._is_theirs("merge"):
            return self.with_state(jax.tree.map(jnp.add, self.state, other.state))
        return self.with_state(self.state.merge(other.state))

    def compute(self) -> Any:
        """Returns the value of the metric."""
        return self.state.compute()

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """True if the metric's `update` names `sample_weight`.

        Args:
            batch_size: the number of rows.
            **kwargs: the arguments of `update`.
        """
        return names_argument(self.state.update, "sample_weight")


def _reset(metric: Any) -> Any:
    """Returns a metric without data. The losses of the library use `jax.tree_map` for it, which JAX has removed."""
    if is_instance_of(metric, "jax_metrics", "Losses"):
        return strong(jax.tree.map(jnp.zeros_like, metric))
    return strong(metric.reset())
