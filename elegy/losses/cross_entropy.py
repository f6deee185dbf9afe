"""Cross-entropy between labels and logits or probabilities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from elegy.losses.class_targets import check_class_indices, class_shape_error, class_targets, values_outside
from elegy.losses.labels import widen_integers
from elegy.losses.loss import Loss
from elegy.losses.numbers import at_least_float32, check_real, log_softmax_of, number_where
from elegy.losses.shapes import array_shape, check_array, match_real, mean_over_features
from elegy.pytree import static_field
from elegy.types import PyTree

_EPSILON = 1e-7


def cross_entropy(
    target: ArrayLike,
    preds: ArrayLike,
    *,
    binary: bool = False,
    from_logits: bool = True,
    label_smoothing: float | None = None,
    check_bounds: bool = True,
) -> jax.Array:
    """Computes the cross-entropy of each example.

    Args:
        target: class indices, integers `(...)`; or one distribution over the classes for each example, `(..., C)`.
            With `binary`, independent 0/1 labels (or probabilities) of the shape of `preds`.
        preds: `(..., C)`, logits or probabilities. With `binary`, any shape.
        binary: True if the outputs are independent binary decisions; the result is their mean over the last axis.
        from_logits: True if `preds` are logits, False if they are probabilities, which are clipped to
            `[1e-7, 1 - 1e-7]`.
        label_smoothing: the fraction of the probability mass of the labels that is spread evenly over the classes.
        check_bounds: True to return NaN for a class index outside of `0..C-1`, False to return 0 for it.

    Returns:
        Values `(...)`, without the class axis (a binary `(B,)` stays `(B,)`), at least float32.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if class indices are not integers, or an array is complex.

    Example:
        >>> cross_entropy(jnp.array([1]), jnp.array([[0.0, 0.0]]))
        Array([0.6931472], dtype=float32)
    """
    target, preds = jnp.asarray(target), jnp.asarray(preds)
    check_real("CrossEntropy", target=target, preds=preds)
    preds = preds.astype(at_least_float32(preds.dtype))
    if binary:
        target, preds = match_real(target, preds, "CrossEntropy(binary=True)")
        return _binary(target, preds, from_logits, label_smoothing)

    target = class_targets(target, preds, "CrossEntropy")
    if target.ndim == preds.ndim:
        return _from_distribution(target.astype(preds.dtype), preds, from_logits, label_smoothing)
    target = widen_integers(target)
    # Negative indices would count from the end.
    inside = lax.clamp(np.asarray(0, target.dtype), target, np.asarray(preds.shape[-1] - 1, target.dtype))
    if from_logits and not label_smoothing:
        values = _of_indices(inside, preds)
    else:
        one_hot = jax.nn.one_hot(target, preds.shape[-1], dtype=preds.dtype)
        values = _from_distribution(one_hot, preds, from_logits, label_smoothing)
    return number_where(lax.ne(target, inside), jnp.nan if check_bounds else 0.0, values)


def _of_indices(target: jax.Array, logits: jax.Array) -> jax.Array:
    """Computes the bits of `optax.softmax_cross_entropy_with_integer_labels`, for indices that are in range.

    To trace, differentiate and lower the jitted functions that Optax calls takes four times as long. They also look for
    indices that are out of range in every step.

    Args:
        target: class indices, `(...)`.
        logits: `(..., C)`, real.
    """
    axis = logits.ndim - 1
    rows = tuple(range(axis))
    entries = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=rows,
        start_indices_batching_dims=rows,
    )
    index = lax.expand_dims(target, (axis,))
    chosen = lax.gather(logits, index, entries, (1,) * logits.ndim, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)
    highest = lax.reduce_max(logits, (axis,))
    # A row of which every logit is -inf, or one is +inf.
    highest = lax.stop_gradient(lax.select(lax.is_finite(highest), highest, lax.full_like(highest, 0)))
    total = lax.reduce_sum(lax.exp(lax.sub(logits, lax.broadcast_in_dim(highest, logits.shape, rows))), (axis,))
    return lax.sub(lax.add(lax.log(total), highest), chosen)


def _binary(target: jax.Array, preds: jax.Array, from_logits: bool, label_smoothing: float | None) -> jax.Array:
    if label_smoothing:
        target = (1.0 - label_smoothing) * target + 0.5 * label_smoothing
    if from_logits:
        values = optax.sigmoid_binary_cross_entropy(preds, target)
    else:
        preds = jnp.clip(preds, _EPSILON, 1.0 - _EPSILON)
        values = -(target * jnp.log(preds) + (1.0 - target) * jnp.log1p(-preds))
    return mean_over_features(values)


def _from_distribution(
    target: jax.Array, preds: jax.Array, from_logits: bool, label_smoothing: float | None
) -> jax.Array:
    if label_smoothing:
        target = optax.smooth_labels(target, label_smoothing)
    if from_logits:
        return -jnp.sum(target * log_softmax_of(target, preds), axis=-1)
    return -jnp.sum(target * jnp.log(jnp.clip(preds, _EPSILON, 1.0 - _EPSILON)), axis=-1)


class CrossEntropy(Loss):
    """Cross-entropy between labels and logits or probabilities (see `cross_entropy`).

    Args:
        from_logits: True if `preds` are logits, False if they are probabilities.
        binary: True if the outputs are independent binary decisions.
        label_smoothing: the fraction of the probability mass of the labels that is spread evenly over the classes, in
            [0, 1).
        check_bounds: True to make the value NaN if a class index is outside of `0..C-1`.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Raises:
        ValueError: if `label_smoothing` is out of range.

    Example:
        >>> loss = CrossEntropy()
        >>> loss(target=jnp.array([0, 1]), preds=jnp.array([[0.0, 0.0], [0.0, 0.0]])).item()
        0.693147...
    """

    from_logits: bool = static_field(default=True, kw_only=True)
    binary: bool = static_field(default=False, kw_only=True)
    label_smoothing: float | None = static_field(default=None, kw_only=True)
    check_bounds: bool = static_field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"CrossEntropy: label_smoothing={self.label_smoothing!r} is the fraction of the labels' probability "
                "mass that is spread over the classes: it must be at least 0 and less than 1, or None."
            )

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: class indices `(...)` or distributions `(..., C)`.
            preds: `(..., C)`.

        Raises:
            ValueError: if the shapes do not fit.
            TypeError: if class indices are not integers.
        """
        check_array(target, "target", "CrossEntropy")
        check_array(preds, "preds", "CrossEntropy")
        if not self.binary:
            _check_ranks(target, preds)
        return cross_entropy(
            target,
            preds,
            binary=self.binary,
            from_logits=self.from_logits,
            label_smoothing=self.label_smoothing,
            check_bounds=self.check_bounds,
        )

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that class indices are in the range of the predictions, and that binary labels are in 0..1.

        With `check_bounds=False` an index may be out of range.

        Args:
            target: ground truth, on the host.
            preds: predictions; only their shape and dtype are used.

        Raises:
            ValueError: if an index or a binary label is out of range, or the shapes do not fit.
            TypeError: if class indices are not integers.
        """
        if array_shape(target) is None:
            return
        if self.binary:
            _check_decisions(np.asarray(target))
            return
        if array_shape(preds) is None:
            return
        target, preds = np.asarray(target), jax.ShapeDtypeStruct(np.shape(preds), np.float32)
        _check_ranks(target, preds)
        check_real("CrossEntropy", target=target)
        class_targets(target, preds, "CrossEntropy")
        if target.shape == preds.shape or not self.check_bounds:
            return
        check_class_indices(target, preds.shape[-1], "CrossEntropy")


def _check_ranks(target: Any, preds: Any) -> None:
    """Refuses two vectors: they could be one distribution, but are usually a batch of binary outputs."""
    if np.ndim(preds) == np.ndim(target) == 1:
        raise class_shape_error(target, preds, "CrossEntropy")


def _check_decisions(target: np.ndarray) -> None:
    shown = values_outside(target, 0, 1)
    if shown:
        raise ValueError(
            f"CrossEntropy(binary=True): the target contains {shown}, but binary labels are 0 or 1, or probabilities "
            "between them: for other labels the loss has no minimum. Map labels of -1 and 1 with `(labels + 1) / 2`; "
            "for class indices leave binary=True out."
        )


Crossentropy = CrossEntropy
crossentropy = cross_entropy
