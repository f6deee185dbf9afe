"""The base class of the adapters for other libraries' metrics."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from elegy.losses.arguments import ALIASES
from elegy.metrics.metric import Metric
from elegy.names import path_name
from elegy.pytree import static_field


class ForeignMetric(Metric):
    """Base class: contains a state of another library, whose structure must not change.

    In a loop an update receives `preds` and `target` under all the names that libraries have for them, `mask`, and
    the weights as `sample_weight` and `sample_weights`. A metric that takes only `mask` ignores rows of weight 0 and
    treats all other weights as 1.
    """

    state: Any
    collection: bool = static_field(default=False, kw_only=True)

    @property
    def rows_are_independent(self) -> bool:
        """False, because the metric of another library may compute anything."""
        return False

    @property
    def brings_names(self) -> bool:
        """True if this is a collection without a name."""
        return self.collection

    @abc.abstractmethod
    def empty(self) -> Any:
        """Returns the state without data."""

    def reset(self) -> Self:
        """Returns the metric without data."""
        return self.replace(state=self.empty())

    def with_state(self, state: Any) -> Self:
        """Returns the metric with another state of the same structure.

        Args:
            state: the state; leaves of another dtype are cast.

        Raises:
            TypeError: if the structure or a shape differs.
        """
        old, new = (
            [(path_name(path), jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
            for tree in (self.state, state)
        )
        if old != new:
            raise TypeError(
                f"the metric {self.name!r} changes the structure of its state: without data its leaves are {old}, with "
                f"data {new}. A compiled loop needs a fixed structure; use a metric whose state has the same shapes "
                "without data (elegy.metrics.AUC for areas under curves)."
            )
        fixed = jax.tree.map(lambda a, b: jnp.asarray(b).astype(a.dtype), self.state, state)
        return self.replace(state=fixed)


def library_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an update under every name that a library may use.

    Example:
        >>> found = library_arguments({"preds": 1.0, "target": jnp.array([3], jnp.uint8)})
        >>> found["logits"], found["labels"].dtype
        (1.0, dtype('int32'))
    """
    available = dict(kwargs)
    target: Any = available.get("target")
    if hasattr(target, "dtype") and jnp.issubdtype(target.dtype, jnp.integer):
        available["target"] = jnp.asarray(target).astype(jnp.int32)  # clu and nnx require int32
    weight = available.get("sample_weight")
    if available.get("mask") is None and weight is not None and jnp.ndim(weight) > 0:
        available["mask"] = jnp.asarray(weight) != 0
    available["sample_weights"] = weight
    available.update({alias: available.get(name) for alias, name in ALIASES.items()})
    return available


def strong(tree: Any, floating: bool = False) -> Any:
    """Converts every leaf to an array that is not weakly typed; with `floating`, integers become float32.

    Example:
        >>> strong({"count": 0}, floating=True)
        {'count': Array(0., dtype=float32)}
    """

    def fix(leaf: Any) -> jax.Array:
        dtype: np.dtype = jnp.result_type(leaf)
        if floating and not jnp.issubdtype(dtype, jnp.inexact):
            dtype = np.dtype("float32")
        return jnp.asarray(leaf).astype(dtype)

    return jax.tree.map(fix, tree)
