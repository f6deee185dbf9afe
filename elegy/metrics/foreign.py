"""Recognises metrics of other libraries, without importing these.

- `clu.metrics` and `metrax`: classes (or instances, whose class is used) and collections;
- `flax.nnx.metrics`: `Average`, `Accuracy`, `Welford`, their subclasses, and `MultiMetric`s of them;
- `jax_metrics`: metrics of the last release, whose own `merge` fails on current JAX.
"""

from __future__ import annotations

import sys
from typing import Any

from elegy.lazy import is_instance_of
from elegy.metrics.foreign_clu import CluMetric
from elegy.metrics.foreign_jax_metrics import JaxMetricsMetric
from elegy.metrics.foreign_nnx import NnxMetric
from elegy.metrics.metric import Metric


def adapt(thing: Any, name: str | None = None) -> Metric | None:
    """Wraps another library's metric; returns None for any other object.

    Args:
        thing: any object.
        name: the name in the logs; for a collection without a name, each of its metrics has its own.

    Raises:
        TypeError: if the state of a recognised metric cannot be merged.

    Example:
        >>> adapt(3) is None
        True
    """
    clu = sys.modules.get("clu.metrics")
    if clu is not None:
        cls = thing if isinstance(thing, type) else type(thing)
        if issubclass(cls, (clu.Metric, clu.Collection)):
            return CluMetric(cls, name)
    if is_instance_of(thing, "flax.nnx", "Metric"):
        return NnxMetric(thing, name)
    if is_instance_of(thing, "jax_metrics", "Metric"):
        return JaxMetricsMetric(thing, name)
    return None
