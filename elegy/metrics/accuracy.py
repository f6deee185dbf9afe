"""Accuracy."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.reduction import safe_divide, total_weight
from elegy.metrics.decisions import Counts, DataType, DecisionMetric, class_indices
from elegy.metrics.sums import CompensatedSum
from elegy.pytree import field, static_field


class Accuracy(DecisionMetric):
    """The fraction of correct decisions.

    Multi-class: the target is the predicted class, or one of the `top_k`. Binary and multi-label: `preds > threshold`
    equals the target. With an average other than `micro`, the accuracy of a class is the fraction of its examples that
    are predicted (its recall), and that of a label is the fraction of its decisions that are correct.

    Args:
        threshold: a binary or multi-label prediction above it is positive.
        num_classes: the number of classes or labels; needed for an average other than `micro`.
        average: `micro`, `macro`, `weighted` or `none` (see `DecisionMetric`), or `samples`: the mean of the accuracies
            of the examples, which differs from `micro` if `ignore_index` leaves different numbers of labels or
            positions.
        ignore_index: a value of the target that is not counted.
        top_k: how many of the highest scores count as predicted.
        subset_accuracy: True to count an example as correct only if all of its labels or positions are correct.
        mode: `binary`, `multiclass`, `multilabel`, or None to derive it from the shapes.
        mdmc_average: for several classes at several positions, as in `jax_metrics`: `global` counts every position as
            an example, `samplewise` is `average="samples"`.
        multiclass: as in `jax_metrics`: True is `mode="multiclass"`, False `mode="binary"`.
        class_id: counts only this class or label, as a binary decision.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if options contradict each other.

    Example:
        >>> target, logits = jnp.array([0, 1]), jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        >>> Accuracy().update(target=target, preds=logits).compute().item()
        0.5
        >>> Accuracy(top_k=2).update(target=target, preds=logits).compute().item()
        1.0
    """

    subset_accuracy: bool = static_field(default=False, kw_only=True)
    mdmc_average: Literal["global", "samplewise"] | None = static_field(default="global", kw_only=True)
    multiclass: bool | None = static_field(default=None, kw_only=True)

    averages: ClassVar[tuple[str, ...]] = (*DecisionMetric.averages, "samples")

    correct: CompensatedSum = field(init=False)
    total: CompensatedSum = field(init=False)
    occurs: CompensatedSum | None = field(default=None, init=False)
    support: CompensatedSum | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        if self.multiclass is not None:
            mode = DataType.MULTICLASS if self.multiclass else DataType.BINARY
            if self.mode is not None and DataType(self.mode) is not mode:
                raise ValueError(f"Accuracy: multiclass={self.multiclass} contradicts mode={self.mode!r}: pass one.")
            vars(self).update(mode=mode)
        if self.mdmc_average not in ("global", "samplewise", None):
            raise ValueError(
                f"Accuracy: mdmc_average={self.mdmc_average!r} is not known. Use 'global' or 'samplewise'."
            )
        if self.mdmc_average == "samplewise":
            if self.average not in ("micro", "samples"):
                raise ValueError(
                    f"Accuracy: mdmc_average='samplewise' averages over examples, average={self.average!r} over "
                    "classes: pass one of them."
                )
            vars(self).update(average="samples")
        super().__post_init__()
        if self.subset_accuracy and (self.average != "micro" or self.class_id is not None):
            raise ValueError("Accuracy: subset_accuracy is about whole examples; average and class_id do not apply.")
        vars(self).update(correct=self.zeros(), total=self.zeros())
        if self.average == "macro":
            vars(self).update(occurs=self.zeros())
        elif self.average == "weighted":
            vars(self).update(support=self.zeros())

    def update(
        self,
        target: ArrayLike,
        preds: ArrayLike,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        **_: Any,
    ) -> Self:
        """Returns the metric with a batch added.

        Args:
            target: class indices, 0/1 labels or one-hot rows.
            preds: scores, probabilities or decisions.
            sample_weight: a scalar, `(B,)` or finer. Where examples are counted as a whole (`average="samples"`,
                `subset_accuracy=True`), a scalar or `(B,)`.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if self.subset_accuracy or self.average == "samples":
            return self._add(*self._count_examples(jnp.asarray(target), jnp.asarray(preds), sample_weight, mask))
        mode, counts = self.count(target, preds, sample_weight, mask)
        if mode is DataType.MULTICLASS and self.class_id is None:
            found = counts.tp + counts.fn
            return self._add(counts.tp, found, found + counts.fp, found)
        everything = sum(counts, jnp.zeros_like(counts.tp))
        return self._add(counts.tp + counts.tn, everything, everything, counts.tp + counts.fn)

    def _add(self, correct: jax.Array, total: jax.Array, occurs: jax.Array, support: jax.Array) -> Self:
        added = {"correct": correct, "total": total, "occurs": occurs, "support": support}
        sums = {name: getattr(self, name) for name in added}
        return self.replace(**{name: kept + added[name] for name, kept in sums.items() if kept is not None})

    def _count_examples(
        self, target: jax.Array, preds: jax.Array, sample_weight: ArrayLike | None, mask: ArrayLike | None
    ) -> Counts:
        mode = self.mode_of(target, preds)
        if mode is DataType.MULTICLASS:
            label, chosen = class_indices(target, preds, self.top_k or 1, "Accuracy")
            hit = jnp.any(chosen == label[..., None], axis=-1)
        else:
            truth, said = self.decide(target, preds)
            hit, label = truth == said, target.reshape(truth.shape)
        counts = self.weights(label, None, None) > 0
        rows, inside = hit.shape[0], math.prod(hit.shape[1:])
        hit, counts = hit.reshape(rows, inside), counts.reshape(rows, inside)
        if self.subset_accuracy:
            right = jnp.all(hit | ~counts, axis=1).astype(float)
        else:
            right = safe_divide(jnp.sum(hit & counts, axis=1), jnp.sum(counts, axis=1))
        weight = total_weight(sample_weight, mask, (rows,))
        weight = jnp.ones(rows) if weight is None else weight
        weight = jnp.where(jnp.any(counts, axis=1), weight, 0.0)
        total = jnp.sum(weight)
        return Counts(jnp.sum(weight * right), total, total, total)

    def compute(self) -> jax.Array:
        """Returns the accuracy: a scalar, or `(num_classes,)` for `average="none"`; 0 without data."""
        occurs, support = (None if kept is None else kept.value for kept in (self.occurs, self.support))
        return self.averaged(self.correct.value, self.total.value, occurs, support)
