"""Focal cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from elegy.losses.class_targets import check_class_indices, class_shape_error, class_targets
from elegy.losses.labels import widen_integers
from elegy.losses.loss import Loss
from elegy.losses.numbers import at_least_float32, check_real, log_softmax_of
from elegy.losses.shapes import array_shape, check_array, match_real, mean_over_features
from elegy.pytree import static_field
from elegy.types import PyTree

_EPSILON = 1e-7


def focal_cross_entropy(
    target: ArrayLike,
    preds: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = None,
    binary: bool = False,
    from_logits: bool = True,
    label_smoothing: float | None = None,
) -> jax.Array:
    """Computes `-alpha * (1 - p) ** gamma * log(p)`, where `p` is the probability of the target.

    Examples that are classified well count less than in the cross-entropy, which is the value for `gamma=0`. See Lin et
    al., "Focal loss for dense object detection", 2017 (https://arxiv.org/abs/1708.02002).

    Args:
        target: class indices `(...)`, or distributions `(..., C)`, whose classes are summed by their probability. With
            `binary`, 0 and 1 in the shape of `preds`.
        preds: `(..., C)`. With `binary`, any shape.
        gamma: the exponent, 0 or more.
        alpha: one factor for each class, or one for all. With `binary` the factor of label 1; that of label 0 is
            `1 - alpha`.
        binary: True if the outputs are independent binary decisions; the result is their mean over the last axis.
        from_logits: True if `preds` are logits, False if they are probabilities, which are clipped to
            `[1e-7, 1 - 1e-7]`.
        label_smoothing: the fraction of the probability mass of the labels that is spread evenly over the classes.

    Returns:
        Values `(...)`, without the class axis, at least float32; NaN for a class index outside of `0..C-1`.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if class indices are not integers, or an array is complex.

    Example:
        >>> focal_cross_entropy(jnp.array([1]), jnp.array([[0.0, 0.0]]))
        Array([0.1732868], dtype=float32)
    """
    target, preds = jnp.asarray(target), jnp.asarray(preds)
    check_real("FocalCrossEntropy", target=target, preds=preds)
    preds = preds.astype(at_least_float32(preds.dtype))
    if not from_logits:
        preds = jnp.clip(preds, _EPSILON, 1.0 - _EPSILON)
    if binary:
        target, preds = match_real(target, preds, "FocalCrossEntropy(binary=True)")
        logits = preds if from_logits else jnp.log(preds) - jnp.log1p(-preds)
        smoothed = target if not label_smoothing else (1.0 - label_smoothing) * target + 0.5 * label_smoothing
        factor = None if alpha is None else jnp.asarray(alpha, logits.dtype)
        return mean_over_features(optax.sigmoid_focal_loss(logits, smoothed, alpha=factor, gamma=gamma))

    target = class_targets(target, preds, "FocalCrossEntropy")
    outside = None
    if target.ndim < preds.ndim:
        target = widen_integers(target)
        outside = (target < 0) | (target >= preds.shape[-1])
        target = jax.nn.one_hot(target, preds.shape[-1], dtype=preds.dtype)
    target = target.astype(preds.dtype)
    if label_smoothing:
        target = jnp.asarray(optax.smooth_labels(target, label_smoothing))
    log_p = log_softmax_of(target, preds) if from_logits else jnp.log(preds)
    # 1 - p, without the cancellation for p near 1; the bound keeps the gradient finite for an exponent below 1.
    rest = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(preds.dtype).tiny)
    terms = target * rest**gamma * -log_p
    if alpha is not None:
        factors = jnp.asarray(alpha, preds.dtype)
        if factors.shape not in ((), preds.shape[-1:]):
            raise ValueError(
                f"FocalCrossEntropy: alpha has {factors.size} factors for {preds.shape[-1]} classes. Give one number, "
                "or one for each class."
            )
        terms = terms * jnp.broadcast_to(factors, terms.shape)
    values = jnp.sum(terms, axis=-1)
    return values if outside is None else jnp.where(outside, jnp.nan, values)


class FocalCrossEntropy(Loss):
    """Cross-entropy in which examples that are classified well count less (see `focal_cross_entropy`).

    Args:
        gamma: the exponent, 0 or more.
        alpha: a factor, a tuple with one for each class, or None for 1.
        from_logits: True if `preds` are logits, False if they are probabilities.
        binary: True if the outputs are independent binary decisions.
        label_smoothing: the fraction of the probability mass of the labels that is spread evenly over the classes, in
            [0, 1).
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> loss = FocalCrossEntropy(gamma=2.0, binary=True)
        >>> loss(target=jnp.array([1.0]), preds=jnp.array([0.0])).item()
        0.173286...
    """

    gamma: float = static_field(default=2.0, kw_only=True)
    alpha: float | tuple[float, ...] | None = static_field(default=None, kw_only=True)
    from_logits: bool = static_field(default=True, kw_only=True)
    binary: bool = static_field(default=False, kw_only=True)
    label_smoothing: float | None = static_field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        if self.gamma < 0:
            raise ValueError(f"FocalCrossEntropy: gamma={self.gamma!r} must be 0 or more.")
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 1:
            raise ValueError(f"FocalCrossEntropy: label_smoothing={self.label_smoothing!r} must be in [0, 1), or None.")
        if isinstance(self.alpha, Sequence):
            vars(self).update(alpha=tuple(self.alpha))
        if self.binary and self.alpha is not None and (isinstance(self.alpha, tuple) or not 0 <= self.alpha <= 1):
            raise ValueError(
                f"FocalCrossEntropy: alpha={self.alpha!r} with binary=True must be one number in [0, 1], or None."
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
        check_array(target, "target", "FocalCrossEntropy")
        check_array(preds, "preds", "FocalCrossEntropy")
        if not self.binary and jnp.ndim(preds) == jnp.ndim(target) == 1:
            raise class_shape_error(target, preds, "FocalCrossEntropy")
        return focal_cross_entropy(
            target,
            preds,
            gamma=self.gamma,
            alpha=self.alpha,
            binary=self.binary,
            from_logits=self.from_logits,
            label_smoothing=self.label_smoothing,
        )

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that class indices are in the range of the predictions.

        Args:
            target: ground truth, on the host.
            preds: predictions; only their shape is used.

        Raises:
            ValueError: if an index is out of range.
        """
        if not self.binary and array_shape(preds) and np.ndim(target) == np.ndim(preds) - 1:
            check_class_indices(target, np.shape(preds)[-1], "FocalCrossEntropy")


Focal = FocalCrossEntropy
FocalCrossentropy = FocalCrossEntropy
