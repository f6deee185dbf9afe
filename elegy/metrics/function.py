"""Converts losses, plain functions and other libraries' metrics to metrics."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.function import FunctionLoss
from elegy.losses.loss import Loss
from elegy.losses.reduction import Reduction, safe_divide
from elegy.losses.target_check import check_target
from elegy.metrics.foreign import adapt
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum, add_trees
from elegy.names import name_of, snake_case
from elegy.pytree import field
from elegy.types import PyTree


class LossMetric(Metric):
    """A loss as a metric.

    Args:
        loss: a loss, whose reduction is not `NONE`.
        name: the loss's name by default.
        dtype: the dtype of the state.

    Raises:
        ValueError: if the reduction is `Reduction.NONE`.

    Example:
        >>> import jax.numpy as jnp
        >>> from elegy.losses import MeanSquaredError
        >>> metric = LossMetric(MeanSquaredError())
        >>> metric.name, metric.update(target=jnp.zeros(2), preds=jnp.array([1.0, 3.0])).compute().item()
        ('mean_squared_error', 5.0)
    """

    loss: Loss
    total: CompensatedSum = field(init=False)
    count: CompensatedSum | None = field(init=False)

    def __post_init__(self) -> None:
        """Sets the state to zero."""
        vars(self).update(name=self.name or name_of(self.loss))
        super().__post_init__()
        self.loss.check_reduction()
        count = None if self.loss.reduction is Reduction.SUM else CompensatedSum.zeros((), self.dtype)
        vars(self).update(total=CompensatedSum.zeros((), self.dtype), count=count)

    def update(self, **kwargs: Any) -> Self:
        """Returns the metric with a batch added.

        Args:
            **kwargs: the arguments of `Loss.terms`.

        Raises:
            TypeError: if a required argument is missing.
        """
        numerator, denominator = self.loss.terms(**kwargs)
        total = self.total + numerator
        if self.count is None or denominator is None:
            return self.replace(total=total)
        return self.replace(total=total, count=self.count + denominator)

    def compute(self) -> jax.Array:
        """Returns the loss over all data, a scalar; 0 without data."""
        return self.total.value if self.count is None else safe_divide(self.total.value, self.count.value)

    def reset(self) -> Self:
        """Returns the metric without data."""
        total, count = jax.tree.map(jnp.zeros_like, (self.total, self.count))
        return self.replace(total=total, count=count)

    def merge(self, other: Self) -> Self:
        """Returns the metric of both metrics' data.

        Args:
            other: a metric of the same structure.
        """
        total, count = add_trees((self.total, self.count), (other.total, other.count))
        return self.replace(total=total, count=count)

    @property
    def rows_are_independent(self) -> bool:
        """True if the rows of the loss are known to be independent."""
        return self.loss.rows_are_independent

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """True if the loss returns at least one value for each example.

        Args:
            batch_size: the number of rows.
            **kwargs: the arguments of the loss.
        """
        return self.loss.maskable(batch_size, **kwargs)

    def target_check(self, target: PyTree, preds: PyTree, sample_weight: ArrayLike | None = None) -> None:
        """Checks the values of a batch as the loss does.

        Args:
            target: ground truth, on the host.
            preds: predictions, on the host.
            sample_weight: `(B,)` or finer; values of weight 0 are not checked.
        """
        check_target(self.loss, target, preds, sample_weight)


def as_metric(thing: Any, name: str | None = None) -> Metric:
    """Converts a metric, a loss, a plain function or another library's metric to a `Metric`.

    Args:
        thing: the user's metric.
        name: a name for the logs, used for functions and other libraries' metrics.

    Raises:
        TypeError: if `thing` is anything else; the message says what to write instead.

    Example:
        >>> as_metric(lambda target, preds: target == preds, name="exact").name
        'exact'
    """
    if isinstance(thing, Metric):
        return thing
    if isinstance(thing, Loss):
        return LossMetric(thing)
    adapted = adapt(thing, name)
    if adapted is not None:
        return adapted
    if isinstance(thing, type):
        hint = f" That is the class; write {thing.__name__}(...)." if issubclass(thing, (Metric, Loss)) else ""
        raise TypeError(f"{thing.__name__} cannot be used as a metric: expected a Metric or a function.{hint}")
    if not callable(thing):
        raise TypeError(
            f"{thing!r} cannot be used as a metric: expected a Metric, a Loss, a function f(target, preds), a metric "
            "of clu, metrax, flax.nnx or jax_metrics, or a list or dict of them."
        )
    return LossMetric(_MetricFunction(thing, name=name or metric_name(thing)))


class _MetricFunction(FunctionLoss):
    def check_dtype(self, values: jax.Array) -> None:
        """Accepts integers and truth values, too: a metric needs no gradient."""


def metric_name(thing: Any) -> str:
    """Returns the log name of a user's metric.

    Example:
        >>> class MyScore: ...
        >>> metric_name(MyScore), metric_name(MyScore()), metric_name(lambda target, preds: 0)
        ('my_score', 'my_score', 'metric_fn')
    """
    return snake_case(thing.__name__) if isinstance(thing, type) else name_of(thing, "metric_fn")
