"""Metrics of `clu.metrics` and `metrax`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from elegy.losses.arguments import call_with_named, names_argument
from elegy.metrics.foreign_state import ForeignMetric, library_arguments, strong
from elegy.names import snake_case
from elegy.pytree import Static, static_field


class CluMetric(ForeignMetric):
    """A metric or collection of `clu.metrics` or `metrax`.

    Integers of its state are kept as float32, because counts of weighted updates are not integers.

    Args:
        cls: the class.
        name: the name in the logs.

    Raises:
        TypeError: if the class cannot make a state without data.

    Example:
        >>> import clu.metrics
        >>> import jax.numpy as jnp
        >>> metric = CluMetric(clu.metrics.Accuracy)
        >>> metric.update(target=jnp.array([0, 1]), preds=jnp.array([[2.0, 1.0], [2.0, 1.0]])).compute().item()
        0.5
    """

    cls: Static[type] = static_field(kw_only=True)

    def __init__(self, cls: type, name: str | None = None):
        vars(self).update(
            cls=Static(cls),
            name=name or snake_case(cls.__name__),
            collection=name is None and not hasattr(cls, "from_model_output"),
        )
        vars(self).update(state=self.empty())

    def empty(self) -> Any:
        """Returns the state without data."""
        return strong(self.cls.value.empty(), floating=True)  # type: ignore[attr-defined]  # clu's protocol

    def update(self, **kwargs: Any) -> Self:
        """Returns the metric with a batch added.

        Args:
            **kwargs: the arguments of `from_model_output` of the class or of the collection's classes.

        Raises:
            TypeError: if a required argument is missing, or the state changes its shape.
        """
        return self.with_state(self.state.merge(self._from_outputs(library_arguments(kwargs))))

    def _from_outputs(self, available: dict[str, Any]) -> Any:
        cls: Any = self.cls.value
        if hasattr(cls, "from_model_output"):
            return call_with_named(cls.from_model_output, available, f"the metric {self.name!r}")
        # A collection passes all arguments to each of its metrics, but some accept only those that they name.
        made = {
            key: call_with_named(type(metric).from_model_output, available, f"the metric {key!r} of {self.name!r}")
            for key, metric in vars(self.state).items()
            if key != "_reduction_counter"
        }
        return self.state.replace(**made)

    def merge(self, other: Self) -> Self:
        """Returns the metric of both metrics' data.

        Args:
            other: a metric of the same structure.
        """
        return self.with_state(self.state.merge(other.state))

    def aggregate(self) -> Self:
        """Returns the metric of all replicas' data, from leaves with a leading axis of replicas."""
        return self.replace(state=self.state.reduce())

    def compute(self) -> Any:
        """Returns the value of the metric or collection."""
        return self.state.compute()

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """True if every class names `mask` or `sample_weights`.

        Args:
            batch_size: the number of rows.
            **kwargs: the arguments of `update`.
        """
        cls: Any = self.cls.value
        own = hasattr(cls, "from_model_output")
        classes = [cls] if own else [type(m) for k, m in vars(self.state).items() if k != "_reduction_counter"]
        makers: list[Callable] = [c.from_model_output for c in classes]
        return all(names_argument(f, "mask") or names_argument(f, "sample_weights") for f in makers)
