"""Overlap of predicted and true regions of each class: Jaccard index and Dice score."""

from __future__ import annotations

import abc
from typing import Literal

import jax
import jax.numpy as jnp

from elegy.losses.reduction import safe_divide
from elegy.metrics.confusion_matrix import ConfusionMatrix
from elegy.pytree import static_field


class Overlap(ConfusionMatrix):
    """Base class: a subclass computes a quotient of true positives, false positives and false negatives of a class."""

    normalize: Literal["true", "pred", "all"] | None = static_field(default=None, init=False)
    average: Literal["micro", "macro", "weighted", "none"] | None = static_field(default="macro")

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        vars(self).update(average="none" if self.average is None else self.average)
        if self.average not in ("micro", "macro", "weighted", "none"):
            raise ValueError(
                f"{type(self).__name__}: average={self.average!r} is not known. Use 'micro', 'macro', 'weighted' or "
                "'none'."
            )

    @abc.abstractmethod
    def quotient(self, tp: jax.Array, wrong: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns numerator and denominator from the true positives and the sum of false positives and negatives."""

    def compute(self) -> jax.Array:
        """Returns the overlap: a scalar, or `(num_classes,)` for `average="none"`; 0 without data."""
        matrix = self.matrix.value
        tp, support, said = jnp.diagonal(matrix), jnp.sum(matrix, axis=1), jnp.sum(matrix, axis=0)
        others = matrix * (1.0 - jnp.eye(self.num_classes, dtype=matrix.dtype))
        wrong = jnp.sum(others, axis=0) + jnp.sum(others, axis=1)
        if self.average == "micro":
            return safe_divide(*self.quotient(jnp.sum(tp), jnp.sum(wrong)))
        value = safe_divide(*self.quotient(tp, wrong))
        if self.average == "none":
            return value
        weight = support if self.average == "weighted" else (support + said > 0).astype(value.dtype)
        return safe_divide(jnp.sum(weight * value), jnp.sum(weight))


class JaccardIndex(Overlap):
    """Intersection over union of each class, `tp / (tp + fp + fn)`, over all examples or pixels of the data.

    `MeanIoU` is another name; its value is that of Keras.

    Args:
        num_classes: the number of classes.
        average: `macro` is the mean over the classes that occur in target or predictions, `weighted` weights them by
            their frequency in the target, `micro` counts all classes together, `none` (or None) returns all values.
        threshold: with two classes, a prediction without an axis of classes is class 1 above it.
        ignore_index: a class index of the target that is not counted, often 255 in segmentations.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `average` is unknown, or there are fewer than 2 classes.

    Example:
        >>> metric = JaccardIndex(2).update(target=jnp.array([0, 0, 1, 1]), preds=jnp.array([0, 1, 0, 1]))
        >>> metric.compute().item()
        0.33333...
    """

    def quotient(self, tp: jax.Array, wrong: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns intersection and union."""
        return tp, tp + wrong


class Dice(Overlap):
    """Dice score of each class, `2 tp / (2 tp + fp + fn)`, over all examples or pixels of the data.

    Args:
        num_classes: the number of classes.
        average: as for `JaccardIndex`.
        threshold: with two classes, a prediction without an axis of classes is class 1 above it.
        ignore_index: a class index of the target that is not counted, often 255 in segmentations.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `average` is unknown, or there are fewer than 2 classes.

    Example:
        >>> metric = Dice(2).update(target=jnp.array([0, 0, 1, 1]), preds=jnp.array([0, 1, 0, 1]))
        >>> metric.compute().item()
        0.5
    """

    def quotient(self, tp: jax.Array, wrong: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns twice the intersection, and the sum of both sizes."""
        return 2.0 * tp, 2.0 * tp + wrong


MeanIoU = JaccardIndex
DiceScore = Dice
