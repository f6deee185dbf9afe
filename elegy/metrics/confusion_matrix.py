"""Confusion matrix."""

from __future__ import annotations

from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from elegy.losses.reduction import safe_divide, total_weight
from elegy.losses.shapes import array_shape
from elegy.metrics.decisions import class_indices, has_class_axis
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum, binned_sums
from elegy.pytree import field, static_field
from elegy.types import PyTree


class ConfusionMatrix(Metric):
    """A matrix whose entry `[i, j]` is the total weight of the targets of class `i` predicted as class `j`.

    Args:
        num_classes: the number of classes.
        normalize: divides by the row sums (`"true"`), the column sums (`"pred"`), the total (`"all"`), or not (None).
        threshold: with two classes, a prediction without an axis of classes is class 1 above it.
        ignore_index: a class index of the target that is not counted.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `normalize` is unknown, or there are fewer than 2 classes.

    Example:
        >>> metric = ConfusionMatrix(2).update(target=jnp.array([0, 0, 1]), preds=jnp.array([0, 1, 1]))
        >>> metric.compute()
        Array([[1., 1.],
               [0., 1.]], dtype=float32)
    """

    num_classes: int = static_field()
    normalize: Literal["true", "pred", "all"] | None = static_field(default=None)
    threshold: float = static_field(default=0.5, kw_only=True)
    ignore_index: int | None = static_field(default=None, kw_only=True)

    matrix: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        if self.num_classes < 2:
            raise ValueError(f"{type(self).__name__}: num_classes={self.num_classes} must be 2 or more.")
        if self.normalize not in (None, "true", "pred", "all"):
            raise ValueError(
                f"ConfusionMatrix: normalize={self.normalize!r} is not known. Use 'true', 'pred', 'all' or None."
            )
        vars(self).update(matrix=CompensatedSum.zeros((self.num_classes, self.num_classes), self.dtype))

    def update(
        self,
        target: ArrayLike,
        preds: ArrayLike,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        **_: Any,
    ) -> Self:
        """Returns the metric with a batch added. Classes out of range are ignored.

        Args:
            target: class indices `(...)`, or one-hot `(..., C)`.
            preds: scores `(..., C)`, predicted classes `(...)`, or with two classes probabilities `(...)`.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        target, preds = jnp.asarray(target), jnp.asarray(preds)
        scores = has_class_axis(target, preds)
        labels = jnp.issubdtype(preds.dtype, jnp.integer)
        if (scores and preds.shape[-1] != self.num_classes) or not (scores or labels or self.num_classes == 2):
            raise ValueError(
                f"{type(self).__name__}: preds of shape {preds.shape} and dtype {preds.dtype} must be scores of shape "
                f"(..., {self.num_classes}) or predicted classes, as integers."
            )
        if not (scores or labels):
            preds = (preds > self.threshold).astype(jnp.int32)
        label, chosen = class_indices(target, preds, 1, type(self).__name__)
        weight = total_weight(sample_weight, mask, label.shape)
        weight = jnp.ones(label.shape) if weight is None else weight
        if self.ignore_index is not None:
            weight = jnp.where(label == self.ignore_index, 0.0, weight)
        rows, columns = (x.ravel().astype(jnp.int32) for x in (label, chosen[..., 0]))
        known = (rows >= 0) & (rows < self.num_classes) & (columns >= 0) & (columns < self.num_classes)
        cells = jnp.where(known, rows * self.num_classes + columns, -1)
        added = binned_sums(cells, weight.ravel(), self.num_classes**2)
        return self.replace(matrix=self.matrix + added.reshape(self.num_classes, self.num_classes))

    def compute(self) -> jax.Array:
        """Returns the matrix `(num_classes, num_classes)`, rows by target; 0 where nothing was counted."""
        axis = {"true": 1, "pred": 0, "all": None}
        matrix = self.matrix.value
        if self.normalize is None:
            return matrix
        return safe_divide(matrix, jnp.sum(matrix, axis=axis[self.normalize], keepdims=True))

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that class indices are in range.

        Args:
            target: ground truth, on the host.
            preds: predictions; not checked.

        Raises:
            ValueError: if an index is out of range.
        """
        if array_shape(target) is None:
            return
        target = np.asarray(target)
        outside = np.unique(target[(target < 0) | (target >= self.num_classes)])
        outside = outside[outside != self.ignore_index]
        if outside.size:
            raise ValueError(
                f"{type(self).__name__}: the target contains {outside[:5].tolist()}, but "
                f"num_classes={self.num_classes}: the classes are 0..{self.num_classes - 1}."
            )
