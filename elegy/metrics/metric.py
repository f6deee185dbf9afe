"""The base class of metrics, and the wrapper that changes the arguments of a metric."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from elegy.losses.arguments import call_with_named, names_argument
from elegy.losses.lookup import Indexing, Renaming
from elegy.losses.numbers import at_least_float32, default_float
from elegy.losses.option_types import check_option_types
from elegy.losses.pairing import check_pairs, is_ours
from elegy.losses.target_check import check_inner
from elegy.metrics.sums import add_trees, sum_leading_axis
from elegy.names import name_of
from elegy.pytree import Pytree, static_field
from elegy.types import PyTree


class Metric(Pytree):
    """Base class: an immutable state that can be merged with the state of other data.

    A subclass declares its state as fields and implements `update` and `compute`. By default the state is a sum:
    `reset` sets every leaf to zero, `merge` adds, `aggregate` sums over the leading axis. A `CompensatedSum` as a field
    stays accurate over millions of steps; a float32 array does not. For a state that is not a sum, override `reset`,
    and either `merge` (associative) or `aggregate`, from which the other one is derived.

    `update` must keep the structure, shapes and dtypes of the state. In a loop it receives only the arguments that it
    names. If it names `sample_weight`, rows of weight 0 must have no effect.

    Args:
        name: the name in the logs; the class name in snake case by default.
        dtype: the dtype of the sums of built-in metrics: float32, or float64 with `jax_enable_x64`. Narrower dtypes
            are widened.

    Example:
        >>> import elegy.pytree
        >>> class Count(Metric):
        ...     count: jax.Array = elegy.pytree.field(default_factory=lambda: jnp.zeros((), jnp.int32))
        ...     def update(self, preds):
        ...         return self.replace(count=self.count + preds.shape[0])
        ...     def compute(self):
        ...         return self.count
        >>> one = Count().batch_updates(preds=jnp.zeros(3))
        >>> one.merge(one).compute().item()
        6
    """

    _removed_arguments: ClassVar[dict[str, str]] = {
        "on": "Instead of `on=key`, call `.index_into(target=key, preds=key)`."
    }
    name: str | None = static_field(default=None, kw_only=True)
    dtype: DTypeLike | None = static_field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Normalizes the options: None means the default."""
        check_option_types(self)
        vars(self).update(
            name=name_of(self), dtype=default_float() if self.dtype is None else at_least_float32(self.dtype)
        )

    @property
    def brings_names(self) -> bool:
        """True if `compute` returns a dict whose keys are log names, without this metric's name as a prefix."""
        return False

    @property
    def rows_are_independent(self) -> bool:
        """True if `update` is known not to depend on rows of weight 0, or on the number of rows.

        True for the metrics of Elegy. The Trainer tests subclasses and metrics of other libraries by running them on a
        few rows, unless a subclass overrides this.
        """
        return is_ours(type(self))

    @abc.abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> Self:
        """Returns the metric with a batch added to its state."""

    @abc.abstractmethod
    def compute(self) -> Any:
        """Returns the value for all data so far: a scalar, an array, or a dict of them."""

    def reset(self) -> Self:
        """Returns the metric without data."""
        return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), self)

    def init(self) -> Self:
        """Returns `reset()`. `jax_metrics` before 0.2 makes the state here; here the constructor does."""
        return self.reset()

    def batch_updates(self, **kwargs: Any) -> Self:
        """Returns the metric of one batch alone: `reset().update(**kwargs)`.

        Args:
            **kwargs: the arguments of `update`.
        """
        return self.reset().update(**kwargs)

    def merge(self, other: Any) -> Self:  # Any, so that a subclass may declare `other: Self`
        """Returns the metric of both metrics' data.

        Args:
            other: a metric of the same class and structure.
        """
        if type(self).aggregate is not Metric.aggregate:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), self, other).aggregate()
        return add_trees(self, other)

    def aggregate(self) -> Self:
        """Returns the metric of all replicas' data, from leaves with a leading axis of replicas.

        Example:
            >>> from elegy.metrics import Mean
            >>> parts = [Mean().update(values=jnp.array(v)) for v in (1.0, 3.0)]
            >>> jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts).aggregate().compute().item()
            2.0
        """
        if type(self).merge is Metric.merge:
            return sum_leading_axis(self)
        leaves = jax.tree.leaves(self)
        count = leaves[0].shape[0] if leaves else 1
        parts = [jax.tree.map(lambda leaf, i=i: leaf[i], self) for i in range(count)]
        return functools.reduce(lambda a, b: a.merge(b), parts)

    def compute_logs(self) -> dict[str, Any]:
        """Returns the value under the metric's name; the values of a dict as `name/key`.

        Example:
            >>> from elegy.metrics import Mean
            >>> Mean(name="height").compute_logs()
            {'height': Array(0., dtype=float32)}
        """
        return dict(flatten_value(name_of(self), self.compute()))

    def __call__(self, **kwargs: Any) -> tuple[Any, Self]:
        """Returns the value of one batch alone, and the metric with the batch merged into it.

        Args:
            **kwargs: the arguments of `update`.
        """
        updates = self.batch_updates(**kwargs)
        return updates.compute(), self.merge(updates)

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """True if rows can be masked: `update` takes `sample_weight` or `mask`.

        Args:
            batch_size: the number of rows.
            **kwargs: the arguments of `update`: arrays, tracers or `jax.ShapeDtypeStruct`.
        """
        return any(names_argument(self.update, name) for name in ("sample_weight", "mask"))

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks the values of one batch, eagerly, for mistakes that shapes do not show. By default no check.

        Args:
            target: ground truth, on the host.
            preds: predictions, on the host.
        """

    def index_into(self, **kwargs: Any) -> Metric:
        """Returns a metric that indexes into nested arguments.

        Args:
            **kwargs: by the name of an argument, an index or a sequence of indices, applied one after the other.

        Example:
            >>> from elegy.metrics import Mean
            >>> Mean().index_into(values=("a", 0)).update(values={"a": [jnp.array([1.0, 3.0])]}).compute().item()
            2.0
        """
        return WrappedMetric(self, Indexing.of(kwargs))

    def rename_arguments(self, **kwargs: str) -> Metric:
        """Returns a metric that takes its arguments under other names.

        Args:
            **kwargs: by the name of an argument, the name under which it will be given.

        Example:
            >>> from elegy.metrics import Mean
            >>> Mean().rename_arguments(values="preds").update(preds=jnp.array([1.0, 3.0])).compute().item()
            2.0
        """
        return WrappedMetric(self, Renaming(tuple(kwargs.items())))


def flatten_value(name: str, value: Any) -> list[tuple[str, Any]]:
    """Returns the log entries of a metric's value: mappings become `name/key`.

    Example:
        >>> flatten_value("f1", {"cat": 1, "dog": 2}), flatten_value("acc", 3)
        ([('f1/cat', 1), ('f1/dog', 2)], [('acc', 3)])
    """
    if not isinstance(value, Mapping):
        return [(name, value)]
    return [entry for key, item in value.items() for entry in flatten_value(f"{name}/{key}" if name else key, item)]


def updated(metric: Metric, available: Mapping[str, Any], what: str) -> Metric:
    """Returns a metric with a batch added.

    Args:
        metric: the metric.
        available: values by name, of which `update` receives those that it names.
        what: the metric in messages.

    Raises:
        TypeError: if a required argument is missing.
        ValueError: if a metric of the user's compares every example with every other (see `check_pairs`).
    """

    def update(**kwargs: Any) -> Metric:
        return call_with_named(metric.update, kwargs, what)

    if not is_ours(type(metric)):
        check_pairs(update, available, what, type(metric))
    return update(**available)


class WrappedMetric(Metric):
    """The metric that `index_into` and `rename_arguments` return: an inner metric whose arguments are changed."""

    metric: Metric
    change: Indexing | Renaming = static_field()

    def __post_init__(self) -> None:
        """Takes the options of the inner metric."""
        vars(self).update(name=name_of(self.metric), dtype=self.metric.dtype)

    def _inner(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return self.change.apply(kwargs, f"the metric {self.name!r}")

    @property
    def rows_are_independent(self) -> bool:
        """As for the inner metric."""
        return self.metric.rows_are_independent

    def update(self, **kwargs: Any) -> Self:
        """Returns the metric with a batch added."""
        return self.replace(metric=updated(self.metric, self._inner(kwargs), f"the metric {self.name!r}"))

    def compute(self) -> Any:
        """Returns the value of the inner metric."""
        return self.metric.compute()

    def reset(self) -> Self:
        """Returns the metric without data."""
        return self.replace(metric=self.metric.reset())

    def merge(self, other: Self) -> Self:
        """Returns the metric of both metrics' data."""
        return self.replace(metric=self.metric.merge(other.metric))

    def aggregate(self) -> Self:
        """Returns the metric of all replicas' data, from leaves with a leading axis of replicas."""
        return self.replace(metric=self.metric.aggregate())

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """As for the inner metric."""
        return self.metric.maskable(batch_size, **self._inner(kwargs))

    def target_check(self, target: PyTree, preds: PyTree, sample_weight: ArrayLike | None = None) -> None:
        """Checks the values of a batch as the inner metric does."""
        given = {"target": target, "preds": preds, "sample_weight": sample_weight}
        check_inner(self.metric, self.change, given, f"the metric {self.name!r}")
