"""Counts true and false positives and negatives, for accuracy, precision, recall and F scores."""

from __future__ import annotations

import enum
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from elegy.losses.labels import widen_integers
from elegy.losses.numbers import check_real, whole_sum
from elegy.losses.reduction import safe_divide, total_weight
from elegy.losses.shapes import array_shape, match_real
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum, binned_sums
from elegy.pytree import static_field
from elegy.types import Array, PyTree

Average = Literal["micro", "macro", "weighted", "none", "samples"]
_PER_CLASS = ("macro", "weighted", "none")


class DataType(enum.Enum):
    """The kind of a classification.

    - `BINARY`: each value is a binary decision.
    - `MULTICLASS`: one class of several.
    - `MULTILABEL`: any number of labels: independent binary decisions along the last axis.

    Raises:
        ValueError: if a string is not the name of a mode; the message lists the names.

    Example:
        >>> DataType("multilabel") is DataType.MULTILABEL
        True
    """

    BINARY = "binary"
    MULTICLASS = "multiclass"
    MULTILABEL = "multilabel"

    @classmethod
    def _missing_(cls, value: object) -> DataType:
        names = ", ".join(repr(member.value) for member in cls)
        raise ValueError(f"{value!r} is not a mode of a classification metric. Use one of {names}.")


class Counts(NamedTuple):
    """Weights of true and false positives and negatives, in total or for each class.

    In multi-class mode true negatives are not counted: `tn` is 0.
    """

    tp: jax.Array
    fp: jax.Array
    tn: jax.Array
    fn: jax.Array


class DecisionMetric(Metric):
    """Base class of the metrics that compare decisions.

    Without `mode`, the shapes determine it. Scores `(..., C)` with class indices `(...)`, or floating scores with
    one-hot targets of the same shape `(B, ..., C)`, are multi-class. Predictions and targets of the same shape `(B,)`
    or `(..., 1)` are binary.

    Args:
        threshold: a binary or multi-label prediction above it is positive.
        num_classes: the number of classes or labels; needed for an average other than `micro`.
        average: `micro` counts all decisions together; `macro` is the mean of the values of the classes that occur in
            target or predictions, or of all labels with `mode="multilabel"`; `weighted` weights them by their frequency
            in the target; `none` (or None) returns each class's value.
        ignore_index: a value of the target that is not counted.
        top_k: how many of the highest scores count as predicted, for multi-class scores.
        mode: a `DataType` or its value; None derives it from the shapes.
        class_id: counts only this class or label, as a binary decision.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if options contradict each other.
        TypeError: if an option has the wrong type.
    """

    threshold: float = static_field(default=0.5)
    num_classes: int | None = static_field(default=None)
    average: Average | None = static_field(default="micro")
    ignore_index: int | None = static_field(default=None, kw_only=True)
    top_k: int | None = static_field(default=None, kw_only=True)
    mode: DataType | None = static_field(default=None, kw_only=True)
    class_id: int | None = static_field(default=None, kw_only=True)

    averages: ClassVar[tuple[str, ...]] = ("micro", "macro", "weighted", "none")
    """The allowed values of `average`."""

    integers_are = DataType.MULTICLASS
    """The default mode for integer predictions of the target's shape."""

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        what = type(self).__name__
        if isinstance(self.threshold, int) and self.threshold > 1:  # the first argument in torchmetrics
            raise ValueError(
                f"{what}: threshold={self.threshold!r} looks like a number of classes: write "
                f"num_classes={self.threshold!r}. A threshold of logits is a float, {float(self.threshold)!r}."
            )
        average = "none" if self.average is None else str(self.average).lower()
        mode = None if self.mode is None else DataType(self.mode)
        if average not in self.averages:
            raise ValueError(f"{what}: average={self.average!r} is not known. Use one of {', '.join(self.averages)}.")
        if average in _PER_CLASS and not self.num_classes:
            raise ValueError(f"{what}: average={average!r} keeps a count for each class; pass num_classes=...")
        if average != "micro" and self.class_id is not None:
            raise ValueError(f"{what}: class_id={self.class_id} leaves one class; there is nothing to average.")
        if average in _PER_CLASS and mode is DataType.BINARY:
            raise ValueError(f"{what}: average={average!r} needs classes or labels, but mode='binary' has none.")
        if self.class_id is not None and mode is DataType.BINARY:
            raise ValueError(f"{what}: class_id={self.class_id} needs classes or labels, but mode='binary' has none.")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"{what}: top_k={self.top_k!r} must be an integer of 1 or more.")
        if self.top_k is not None and mode not in (None, DataType.MULTICLASS):
            raise ValueError(f"{what}: top_k is for multi-class scores; mode={mode.value!r} compares with a threshold.")
        vars(self).update(average=average, mode=mode)

    def zeros(self) -> CompensatedSum:
        """Returns a state without data: a scalar, or one number for each class."""
        return CompensatedSum.zeros((self.num_classes or 0,) if self.average in _PER_CLASS else (), self.dtype)

    def mode_of(self, target: Array, preds: Array) -> DataType:
        """Returns the mode for these arrays.

        Args:
            target: ground truth; only its shape is used.
            preds: predictions; only their shape and dtype are used.

        Raises:
            ValueError: if `mode`, `top_k`, `average` or `class_id` does not fit the shapes.
        """
        what = type(self).__name__
        shapes = f"preds of shape {preds.shape} and dtype {preds.dtype} with target of shape {target.shape}"
        has_classes = has_class_axis(target, preds)
        if self.mode is not None:
            mode = self.mode
        elif has_classes:
            mode = DataType.MULTICLASS
        elif jnp.issubdtype(preds.dtype, jnp.integer):
            mode = DataType.MULTICLASS if self.num_classes else self.integers_are
        else:
            mode = DataType.BINARY
        if mode is DataType.MULTICLASS and not (has_classes or jnp.issubdtype(preds.dtype, jnp.integer)):
            raise ValueError(
                f"{what}: mode='multiclass', but {shapes} have no axis of classes. Pass mode='binary', or give scores "
                "of shape (..., classes)."
            )
        if mode is DataType.BINARY and (self.average in _PER_CLASS or self.class_id is not None):
            raise ValueError(f"{what}: average and class_id need classes or labels, but {shapes} are binary.")
        if self.top_k is not None and not has_classes:
            raise ValueError(f"{what}: top_k={self.top_k} needs scores of shape (..., classes); there are {shapes}.")
        if self.num_classes and has_classes and mode is not DataType.BINARY and preds.shape[-1] != self.num_classes:
            raise ValueError(f"{what}: num_classes={self.num_classes} does not fit {shapes}.")
        return mode

    def count(
        self, target: ArrayLike, preds: ArrayLike, sample_weight: ArrayLike | None, mask: ArrayLike | None
    ) -> tuple[DataType, Counts]:
        """Counts the decisions of a batch.

        Args:
            target: ground truth.
            preds: predictions.
            sample_weight: a scalar, `(B,)`, finer, or None.
            mask: `(B,)` bool or None.

        Raises:
            ValueError: if the shapes do not fit.
        """
        target, preds = jnp.asarray(target), jnp.asarray(preds)
        check_real(type(self).__name__, target=target, preds=preds)
        mode = self.mode_of(target, preds)
        if mode is DataType.MULTICLASS:
            return mode, self._count_classes(target, preds, sample_weight, mask)
        return mode, self._count_decisions(target, preds, sample_weight, mask, mode)

    def _count_classes(
        self, target: jax.Array, preds: jax.Array, sample_weight: ArrayLike | None, mask: ArrayLike | None
    ) -> Counts:
        label, chosen = class_indices(target, preds, self.top_k or 1, type(self).__name__)
        weight = self.weights(label, sample_weight, mask)
        if chosen.shape[-1] == 1:
            found = lax.squeeze(chosen, (chosen.ndim - 1,))
            hit = lax.eq(found, label) if found.dtype == label.dtype else found == label
        else:
            hit = jnp.any(chosen == label[..., None], axis=-1)
        if self.class_id is not None:
            return _count(label == self.class_id, jnp.any(chosen == self.class_id, axis=-1), weight, None)
        if self.average == "micro":
            right = whole_sum(lax.select(hit, weight, lax.full_like(weight, 0)))
            total = whole_sum(weight)
            chosen_in_all = total if chosen.shape[-1] == 1 else chosen.shape[-1] * total
            return Counts(right, lax.sub(chosen_in_all, right), jnp.zeros(()), lax.sub(total, right))
        count = self.num_classes or 0
        wrong = jnp.where(chosen != label[..., None], weight[..., None], 0.0)
        return Counts(
            tp=binned_sums(label.ravel(), jnp.where(hit, weight, 0.0).ravel(), count),
            fp=binned_sums(chosen.ravel(), wrong.ravel(), count),
            tn=jnp.zeros(count),
            fn=binned_sums(label.ravel(), jnp.where(hit, 0.0, weight).ravel(), count),
        )

    def _count_decisions(
        self,
        target: jax.Array,
        preds: jax.Array,
        sample_weight: ArrayLike | None,
        mask: ArrayLike | None,
        mode: DataType,
    ) -> Counts:
        truth, said = self.decide(target, preds)
        weight = self.weights(target.reshape(truth.shape), sample_weight, mask)
        if self.class_id is not None:
            truth, said, weight = (x[..., self.class_id] for x in (truth, said, weight))
        per_label = mode is DataType.MULTILABEL and self.average != "micro"
        return _count(truth, said, weight, tuple(range(truth.ndim - 1)) if per_label else None)

    def weights(self, target: jax.Array, sample_weight: ArrayLike | None, mask: ArrayLike | None) -> jax.Array:
        """Returns the weight of each value of the target; 0 for `ignore_index`.

        Args:
            target: class indices or 0/1 labels.
            sample_weight: a scalar, `(B,)`, finer, or None.
            mask: `(B,)` bool or None.
        """
        target = widen_integers(target)
        weight = total_weight(sample_weight, mask, target.shape)
        weight = jnp.ones(target.shape) if weight is None else weight
        return weight if self.ignore_index is None else jnp.where(target == self.ignore_index, 0.0, weight)

    def decide(self, target: ArrayLike, preds: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Returns the binary decisions of target and predictions, in the same shape.

        Args:
            target: 0 or 1.
            preds: probabilities, scores or decisions, of the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        target, preds = match_real(target, preds, type(self).__name__)
        return target > 0.5, preds > self.threshold

    def averaged(
        self, numerator: jax.Array, denominator: jax.Array, occurs: jax.Array | None, support: jax.Array | None
    ) -> jax.Array:
        """Returns the quotient, averaged over classes as `average` says; 0 without data.

        Args:
            numerator: for each class, or in total.
            denominator: likewise.
            occurs: the weight of each class in target or predictions; used for `macro` only.
            support: the weight of each class in the target; used for `weighted` only.
        """
        value = safe_divide(numerator, denominator)
        if self.average == "macro" and occurs is not None:
            weight = (occurs > 0).astype(value.dtype)
        elif self.average == "weighted" and support is not None:
            weight = support
        else:
            return value
        return safe_divide(jnp.sum(weight * value), jnp.sum(weight))

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that the targets of binary decisions are 0 or 1.

        Args:
            target: ground truth, on the host.
            preds: predictions; only their shape and dtype are used.

        Raises:
            ValueError: if there are other values, or the shapes do not fit.
        """
        if array_shape(target) is None or array_shape(preds) is None:
            return
        target = np.asarray(target)
        if self.mode_of(target, preds) is DataType.MULTICLASS:
            return
        other = [v for v in np.unique(target).tolist() if v not in (0, 1, self.ignore_index)]
        if other and not np.issubdtype(target.dtype, np.inexact):
            raise ValueError(
                f"{type(self).__name__}: the targets of binary decisions are 0 or 1, but there are {other[:5]}. For "
                "classes pass mode='multiclass' (predicted classes need num_classes=... as well)."
            )


def has_class_axis(target: Array, preds: Array) -> bool:
    """True if the last axis of predictions has the scores of classes.

    Example:
        >>> has_class_axis(jnp.zeros(4), jnp.zeros((4, 3))), has_class_axis(jnp.zeros(4), jnp.zeros((4, 1)))
        (True, False)
    """
    if preds.ndim == 0 or preds.shape[-1] == 1:
        return False
    if target.shape in (preds.shape[:-1], (*preds.shape[:-1], 1)):
        return True
    return target.shape == preds.shape and preds.ndim > 1 and jnp.issubdtype(preds.dtype, jnp.floating)


def class_indices(target: jax.Array, preds: jax.Array, top_k: int, what: str) -> tuple[jax.Array, jax.Array]:
    """Returns the classes of the targets, `(...)`, and the `k` predicted classes, `(..., k)`.

    Args:
        target: class indices `(...)`, `(..., 1)` or distributions `(..., C)`.
        preds: scores `(..., C)` or class indices `(...)`.
        top_k: the number of scores to choose; the first ones of equal scores.
        what: the name of the caller in messages.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> class_indices(jnp.array([1]), jnp.array([[0.1, 0.7, 0.2]]), 2, "Accuracy")
        (Array([1], dtype=int32), Array([[1, 2]], dtype=int32))
    """
    target, preds = widen_integers(target), widen_integers(preds)
    if not has_class_axis(target, preds):
        if preds.size != target.size or preds.shape[:1] != target.shape[:1]:
            raise ValueError(
                f"{what}: target has shape {target.shape} and preds {preds.shape}. For scores of shape (..., classes) "
                "give class indices of shape (...), or one-hot targets of shape (..., classes)."
            )
        return target, preds.reshape(target.shape)[..., None]
    if top_k > preds.shape[-1]:
        raise ValueError(f"{what}: top_k={top_k}, but preds of shape {preds.shape} have {preds.shape[-1]} classes.")
    if target.shape == preds.shape:
        target = jnp.argmax(target, axis=-1)
    target = target.reshape(preds.shape[:-1])
    if top_k == 1:
        return target, lax.expand_dims(jnp.argmax(preds, axis=-1), (target.ndim,))
    return target, jax.lax.top_k(preds, top_k)[1]


def _count(truth: jax.Array, said: jax.Array, weight: jax.Array, axis: tuple[int, ...] | None) -> Counts:
    cases = (truth & said, ~truth & said, ~truth & ~said, truth & ~said)
    tp, fp, tn, fn = (jnp.sum(jnp.where(case, weight, 0.0), axis=axis) for case in cases)
    return Counts(tp=tp, fp=fp, tn=tn, fn=fn)
