"""Scores of class decisions that are computed from a confusion matrix: agreement beyond chance, and mean recall."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from elegy.losses.reduction import safe_divide
from elegy.metrics.confusion_matrix import ConfusionMatrix
from elegy.pytree import static_field


class MatthewsCorrelation(ConfusionMatrix):
    """Matthews correlation coefficient: the correlation of predicted and true classes, between -1 and 1.

    For two classes it is `(tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn))`; for more, the `R_K` of
    Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.

    Args:
        num_classes: the number of classes.
        threshold: with two classes, a prediction without an axis of classes is class 1 above it.
        ignore_index: a class index of the target that is not counted.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if there are fewer than 2 classes.

    Example:
        >>> metric = MatthewsCorrelation(2).update(target=jnp.array([1, 1, 1, 0]), preds=jnp.array([1, 0, 1, 1]))
        >>> metric.compute().item()
        -0.33333...
    """

    normalize: Literal["true", "pred", "all"] | None = static_field(default=None, init=False)

    def compute(self) -> jax.Array:
        """Returns the coefficient, a scalar; as in scikit-learn 0 if all targets or all predictions are equal."""
        matrix = safe_divide(self.matrix.value, jnp.sum(self.matrix.value))
        others = 1.0 - jnp.eye(self.num_classes, dtype=matrix.dtype)
        tp = jnp.diagonal(matrix)
        fn, fp = jnp.sum(matrix * others, axis=1), jnp.sum(matrix * others, axis=0)
        # Sums of what is not in a row or column, because differences from 1 lose digits if one class is frequent.
        true, said = tp + fn, tp + fp
        tn = jnp.sum(others * (true[None] - matrix.T), axis=1)
        not_true, not_said = jnp.sum(others * true[None], axis=1), jnp.sum(others * said[None], axis=1)
        spread = jnp.sqrt(jnp.sum(true * not_true)) * jnp.sqrt(jnp.sum(said * not_said))
        return safe_divide(jnp.sum(tp * tn - fn * fp), spread)


class CohenKappa(ConfusionMatrix):
    """Cohen's kappa: `1 - observed disagreement / disagreement expected by chance`.

    See Cohen, "A coefficient of agreement for nominal scales", 1960.

    Args:
        num_classes: the number of classes.
        weights: how much a disagreement of classes `i` and `j` counts: 1 (None), `|i - j|` (`"linear"`) or
            `(i - j) ** 2` (`"quadratic"`).
        threshold: with two classes, a prediction without an axis of classes is class 1 above it.
        ignore_index: a class index of the target that is not counted.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `weights` is unknown, or there are fewer than 2 classes.

    Example:
        >>> metric = CohenKappa(2).update(target=jnp.array([1, 1, 0, 0]), preds=jnp.array([1, 0, 0, 0]))
        >>> metric.compute().item()
        0.5
    """

    normalize: Literal["true", "pred", "all"] | None = static_field(default=None, init=False)
    weights: Literal["linear", "quadratic"] | None = static_field(default=None)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        if self.weights not in (None, "linear", "quadratic"):
            raise ValueError(f"CohenKappa: weights={self.weights!r} is not known. Use 'linear', 'quadratic' or None.")

    def compute(self) -> jax.Array:
        """Returns kappa, a scalar; NaN if no disagreement is expected, as without data."""
        matrix = safe_divide(self.matrix.value, jnp.sum(self.matrix.value))
        classes = jnp.arange(self.num_classes)
        apart = jnp.abs(classes[:, None] - classes[None]).astype(matrix.dtype)
        cost = {None: jnp.minimum(apart, 1.0), "linear": apart, "quadratic": jnp.square(apart)}[self.weights]
        by_chance = jnp.sum(matrix, axis=1)[:, None] * jnp.sum(matrix, axis=0)[None]
        return 1.0 - jnp.sum(cost * matrix) / jnp.sum(cost * by_chance)


class BalancedAccuracy(ConfusionMatrix):
    """The mean over the classes of the target of the fraction of their examples that are predicted (the recall).

    `Accuracy(average="macro", num_classes=...)` also counts classes that occur only in the predictions, as 0.

    Args:
        num_classes: the number of classes.
        adjusted: True to scale the value so that random predictions give 0 and correct ones 1.
        threshold: with two classes, a prediction without an axis of classes is class 1 above it.
        ignore_index: a class index of the target that is not counted.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if there are fewer than 2 classes.

    Example:
        >>> metric = BalancedAccuracy(2).update(target=jnp.array([0, 0, 0, 1]), preds=jnp.array([0, 0, 0, 0]))
        >>> metric.compute().item()
        0.5
    """

    normalize: Literal["true", "pred", "all"] | None = static_field(default=None, init=False)
    adjusted: bool = static_field(default=False)

    def compute(self) -> jax.Array:
        """Returns the mean recall, a scalar; 0 without data."""
        matrix = self.matrix.value
        support = jnp.sum(matrix, axis=1)
        classes = jnp.sum(support > 0).astype(matrix.dtype)
        value = safe_divide(jnp.sum(safe_divide(jnp.diagonal(matrix), support)), classes)
        if not self.adjusted:
            return value
        chance = safe_divide(1.0, classes)
        return safe_divide(value - chance, 1.0 - chance)


MCC = MatthewsCorrelation
