"""The base class of losses, and the wrapper that changes the arguments of a loss."""

from __future__ import annotations

import abc
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.callers import stacklevel_of_caller
from elegy.flat import eval_shape
from elegy.losses.arguments import call_with_named, sees_examples
from elegy.losses.lookup import Indexing, Renaming
from elegy.losses.numbers import TracedWeight, as_weight
from elegy.losses.option_types import check_option_types
from elegy.losses.pairing import check_pairs, is_ours
from elegy.losses.reduction import Reduction, reduce_terms, safe_divide, total_weight
from elegy.losses.shapes import array_shape
from elegy.losses.target_check import check_inner
from elegy.names import name_of
from elegy.pytree import Pytree, static_field
from elegy.types import PyTree

"""Arguments whose arrays have one row for each example."""


class Loss(Pytree):
    """Base class: a subclass implements `call`, which returns at least one value for each example.

    `call` receives only the arguments that it names, out of `inputs`, `target`, `preds`, `mask`, `parameters`,
    `batch_stats` and `examples` (or under names such as `y_true`, `y_pred`, `labels`, `logits`). The base class applies
    `sample_weight`, never `call`. Options of a subclass are fields: `axis: int = elegy.static_field(default=-1)`.

    Args:
        reduction: a `Reduction` or its value; `MEAN` by default.
        weight: a factor of the loss, in the total and in the logs.
        name: the name in the logs; the class name in snake case by default.

    Example:
        >>> class Distance(Loss):
        ...     def call(self, target, preds):
        ...         return jnp.abs(preds - target)
        >>> distance = Distance(weight=2.0)
        >>> distance(target=jnp.array([0.0, 0.0]), preds=jnp.array([1.0, 3.0])).item()
        4.0
        >>> distance.name
        'distance'
    """

    _removed_arguments: ClassVar[dict[str, str]] = {
        "on": "Instead of `on=key`, call `.index_into(target=key, preds=key)`."
    }
    reduction: Reduction = static_field(default=Reduction.MEAN, kw_only=True)
    weight: float | TracedWeight = static_field(default=1.0, kw_only=True)
    name: str | None = static_field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Normalizes the options: None means the default, a reduction may be given by its value."""
        check_option_types(self)
        vars(self).update(
            reduction=Reduction.MEAN if self.reduction is None else Reduction(self.reduction),
            weight=1.0 if self.weight is None else as_weight(self.weight),
            name=name_of(self),
        )

    @abc.abstractmethod
    def call(self, *args: Any, **kwargs: Any) -> jax.Array:
        """Computes the values: `(B, ...)`, or a scalar for the whole batch."""

    @property
    def applies_weight(self) -> bool:
        """True if `values` are multiplied by `sample_weight` already."""
        return False

    @property
    def rows_are_independent(self) -> bool:
        """True if the values of a row are known not to depend on other rows, or on the number of rows.

        True for the losses of Elegy. The Trainer tests subclasses and functions by running them on a few rows, unless
        a subclass overrides this.
        """
        return is_ours(type(self))

    def values(self, **kwargs: Any) -> jax.Array:
        """Calls `call` with the arguments that it names.

        Args:
            **kwargs: all available values.

        Returns:
            The values, `(B, ...)`, not weighted.

        Raises:
            TypeError: if `call` requires a value that is not available.
            ValueError: if `call` of a subclass broadcasts `(B,)` and `(B, 1)` to a result of shape `(B, B)`.

        Warns:
            UserWarning: if it broadcasts them and reduces the result.
        """
        if not is_ours(type(self)):
            check_pairs(self._call, kwargs, f"the loss {name_of(self)!r}", type(self))
        return jnp.asarray(self._call(**kwargs))

    def _call(self, **kwargs: Any) -> Any:
        available = {k: v for k, v in kwargs.items() if k != "sample_weight"}
        return call_with_named(self.call, available, f"the loss {name_of(self)!r}")

    def terms(self, **kwargs: Any) -> tuple[jax.Array, jax.Array | None]:
        """Computes the numerator and the denominator of the loss on a batch.

        A row of weight 0 has no effect on the value and the gradient, even if its target or prediction is NaN or
        infinite.

        Args:
            **kwargs: the arguments of `call`, and optionally `sample_weight` (`(B,)` or finer), `mask` (`(B,)` bool)
                and `examples`.

        Returns:
            float32 scalars `(numerator, denominator)`; the denominator is None for `Reduction.SUM`.

        Raises:
            ValueError: if the reduction is `Reduction.NONE`, which gives no scalar.

        Warns:
            UserWarning: if there are sample weights, but `call` returned a scalar without them.
        """
        self.check_reduction()
        sample_weight, mask = kwargs.get("sample_weight"), kwargs.get("mask")
        values = self.values(**self._guard_rows(kwargs))
        if sample_weight is not None and mask is None and values.ndim == 0:
            self._warn_of_weights()
        numerator, denominator = reduce_terms(
            values,
            self.reduction,
            sample_weight=sample_weight,
            mask=mask,
            examples=kwargs.get("examples"),
            weighted=self.applies_weight,
        )
        return numerator if self.weight == 1.0 else numerator * self.weight, denominator

    @property
    def _called(self) -> Callable[..., Any]:
        return self.call

    def _warn_of_weights(self) -> None:
        if not self.applies_weight and sees_examples(self._called):
            warnings.warn(
                f"{name_of(self)!r} returned a scalar, so sample weights and class weights cannot be applied any more. "
                "Return one value for each example, or name a parameter `sample_weight` and apply it.",
                stacklevel=stacklevel_of_caller(),
            )

    def check_reduction(self) -> None:
        """Checks that the loss is a scalar.

        Raises:
            ValueError: if the reduction is `Reduction.NONE`.
        """
        if self.reduction is Reduction.NONE:
            raise ValueError(
                f"the loss {name_of(self)!r} has Reduction.NONE: it is not a scalar and cannot be part of a total. "
                "Use Reduction.MEAN, SUM_OVER_BATCH_SIZE or SUM for training, and NONE only to call the loss yourself."
            )

    def __call__(self, target: PyTree = None, preds: PyTree = None, **kwargs: Any) -> jax.Array:
        """Computes the reduced loss.

        Args:
            target: ground truth.
            preds: predictions.
            **kwargs: further arguments of `call`, and `sample_weight` and `mask`.

        Returns:
            A float32 scalar; for `Reduction.NONE` the weighted values.

        Raises:
            TypeError: if `call` requires an argument that is missing.
        """
        kwargs.update(target=target, preds=preds)
        if self.reduction is Reduction.NONE:
            values = self.values(**self._guard_rows(kwargs)) * self.weight
            weight = total_weight(kwargs.get("sample_weight"), kwargs.get("mask"), values.shape)
            return values if weight is None else jnp.where(weight != 0, values * weight, 0.0)
        numerator, denominator = self.terms(**kwargs)
        return numerator if denominator is None else safe_divide(numerator, denominator)

    def _guard_rows(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Replaces values that are not finite in rows of weight 0: a `where` on the loss would leave NaN gradients."""
        counts = counted(kwargs)
        if not counts:
            return kwargs

        def guard(leaf: Any) -> Any:
            shape = array_shape(leaf)
            if not shape:  # a number, or an object that is not an array
                return leaf
            kept = [aligned for one in counts if (aligned := align_counts(one, shape)) is not None]
            if not kept:
                return leaf
            leaf = jnp.asarray(leaf)
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                return leaf
            return jnp.where(functools.reduce(jnp.logical_and, kept) | jnp.isfinite(leaf), leaf, 0)

        return {k: jax.tree.map(guard, v) if k in ("target", "preds") else v for k, v in kwargs.items()}

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """True if the loss returns at least one value for each row, so that rows can be masked.

        Args:
            batch_size: the number of rows.
            **kwargs: the arguments, as arrays, tracers or `jax.ShapeDtypeStruct`; only shapes are used.
        """
        return eval_shape(lambda given: self.values(**given), kwargs).shape[:1] == (batch_size,)

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks the values of one batch, eagerly, for mistakes that shapes do not show. By default no check.

        Args:
            target: ground truth, on the host.
            preds: predictions, on the host.
        """

    def index_into(self, **kwargs: Any) -> WrappedLoss:
        """Returns a loss that indexes into nested arguments.

        Args:
            **kwargs: by the name of an argument, an index or a sequence of indices, applied one after the other.

        Example:
            >>> from elegy.losses import MeanSquaredError
            >>> loss = MeanSquaredError().index_into(target="a", preds=("a", 0))
            >>> loss(target={"a": jnp.zeros(2)}, preds={"a": [jnp.ones(2)]}).item()
            1.0
        """
        return WrappedLoss(self, Indexing.of(kwargs))

    def rename_arguments(self, **kwargs: str) -> WrappedLoss:
        """Returns a loss that takes its arguments under other names.

        Args:
            **kwargs: by the name of an argument, the name under which it will be given.

        Example:
            >>> from elegy.losses import MeanSquaredError
            >>> loss = MeanSquaredError().rename_arguments(target="inputs")
            >>> loss(inputs=jnp.zeros(2), preds=jnp.ones(2)).item()
            1.0
        """
        return WrappedLoss(self, Renaming(tuple(kwargs.items())))


class WrappedLoss(Loss):
    """The loss that `index_into` and `rename_arguments` return: an inner loss whose arguments are changed."""

    loss: Loss
    change: Indexing | Renaming = static_field()

    def __post_init__(self) -> None:
        """Takes the options of the inner loss."""
        vars(self).update(reduction=self.loss.reduction, weight=self.loss.weight, name=name_of(self.loss))

    def _inner(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return self.change.apply(kwargs, f"the loss {self.name!r}")

    def call(self, **kwargs: Any) -> jax.Array:
        """Computes the values of the inner loss."""
        return self.loss.values(**self._inner(kwargs))

    @property
    def applies_weight(self) -> bool:
        """As for the inner loss."""
        return self.loss.applies_weight

    @property
    def rows_are_independent(self) -> bool:
        """As for the inner loss."""
        return self.loss.rows_are_independent

    def values(self, **kwargs: Any) -> jax.Array:
        """Computes the values of the inner loss."""
        return self.loss.values(**self._inner(kwargs))

    def terms(self, **kwargs: Any) -> tuple[jax.Array, jax.Array | None]:
        """Computes the numerator and the denominator of the inner loss."""
        return self.loss.terms(**self._inner(kwargs))

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """As for the inner loss."""
        return self.loss.maskable(batch_size, **self._inner(kwargs))

    def target_check(self, target: PyTree, preds: PyTree, sample_weight: ArrayLike | None = None) -> None:
        """Checks the values of a batch as the inner loss does."""
        given = {"target": target, "preds": preds, "sample_weight": sample_weight}
        check_inner(self.loss, self.change, given, f"the loss {self.name!r}")


def counted(kwargs: Mapping[str, Any]) -> list[jax.Array]:
    """Returns where `sample_weight` and `mask` are not 0, for those of them that are given for each example.

    Example:
        >>> counted({"sample_weight": jnp.array([0.0, 2.0]), "mask": None})
        [Array([False,  True], dtype=bool)]
    """
    weights = [kwargs.get("sample_weight"), kwargs.get("mask")]
    return [jnp.asarray(weight, bool) for weight in weights if weight is not None and jnp.ndim(weight) > 0]


def align_counts(counts: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
    """Broadcasts a mask of weights to an array's shape: entry by entry if its leading axes fit, otherwise by row.

    Returns None if the number of rows differs.

    Example:
        >>> align_counts(jnp.array([True, False]), (2, 3)).shape
        (2, 1)
    """
    while counts.ndim > 1 and counts.shape[-1] == 1:
        counts = counts[..., 0]
    if counts.ndim > len(shape) or any(c not in (1, s) for c, s in zip(counts.shape, shape, strict=False)):
        counts = jnp.any(counts, axis=tuple(range(1, counts.ndim)))
    if counts.shape[0] not in (1, shape[0]):
        return None
    return counts.reshape(counts.shape + (1,) * (len(shape) - counts.ndim))
