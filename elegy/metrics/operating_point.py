"""The best value of one rate of binary decisions where another one is high enough."""

from __future__ import annotations

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elegy.losses.reduction import safe_divide
from elegy.metrics.binned_scores import BinnedScores
from elegy.pytree import static_field

_TOLERANCE = 1e-6
"""Rates are quotients in float32: 4 of 5 must reach 0.8."""


class Rates(NamedTuple):
    """Rates at each threshold, `(num_bins + 1,)`: from the one that accepts all scores to the one that accepts none.

    Rates of no examples are NaN.
    """

    sensitivity: jax.Array
    specificity: jax.Array
    precision: jax.Array


class OperatingPoint(BinnedScores):
    """Base class: a subclass returns the rate that is maximized and the rate that must reach a bound."""

    num_bins: int = static_field(default=2001, kw_only=True)

    @property
    @abc.abstractmethod
    def bound(self) -> float:
        """The lower bound of the second rate of `tradeoff`."""

    @abc.abstractmethod
    def tradeoff(self, rates: Rates) -> tuple[jax.Array, jax.Array]:
        """Returns the rate to maximize, and the rate that must reach the bound."""

    def __post_init__(self) -> None:
        """Checks the bound and sets the state to zero."""
        super().__post_init__()
        if not 0 <= self.bound <= 1:
            raise ValueError(f"{type(self).__name__}: {self.bound!r} must be in [0, 1].")

    def compute(self) -> jax.Array:
        """Returns the largest value over all thresholds that satisfy the bound, a scalar; 0 if none does.

        It is NaN if it is undefined, because there were no positives or, for a specificity, no negatives.
        """
        found, accepted = (_at_least(sums.value) for sums in (self.positives, self.negatives))
        rates = Rates(
            sensitivity=jnp.where(found[0] > 0, safe_divide(found, found[0]), jnp.nan),
            specificity=jnp.where(accepted[0] > 0, safe_divide(accepted[0] - accepted, accepted[0]), jnp.nan),
            precision=jnp.where(found[0] > 0, safe_divide(found, found + accepted), jnp.nan),
        )
        best, bounded = self.tradeoff(rates)
        undefined = jnp.any(jnp.isnan(best) | jnp.isnan(bounded))
        value = jnp.max(jnp.where(bounded >= self.bound - _TOLERANCE, best, 0.0))
        return jnp.where(undefined, jnp.nan, value)


def _at_least(counts: jax.Array) -> jax.Array:
    """The weight of the scores in each bin or a higher one, and 0 for the threshold above all bins."""
    return jnp.append(jnp.cumsum(counts[::-1])[::-1], 0.0)


class SpecificityAtSensitivity(OperatingPoint):
    """The highest specificity, `tn / (tn + fp)`, of the thresholds whose sensitivity (recall) is high enough.

    The thresholds are those of the bins of `AUC`: exact for scores that are multiples of `1 / (num_bins - 1)`.

    Args:
        sensitivity: the lower bound, in [0, 1].
        num_bins: the number of bins over [0, 1].
        from_logits: True if `preds` are logits, to which the sigmoid is applied.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if the bound is not in [0, 1], or there are fewer than 2 bins.

    Example:
        >>> metric = SpecificityAtSensitivity(1.0)
        >>> metric.update(target=jnp.array([0, 0, 1, 1]), preds=jnp.array([0.1, 0.4, 0.3, 0.8])).compute().item()
        0.5
    """

    sensitivity: float = static_field()

    @property
    def bound(self) -> float:
        """The argument `sensitivity`."""
        return self.sensitivity

    def tradeoff(self, rates: Rates) -> tuple[jax.Array, jax.Array]:
        """Returns specificity and sensitivity."""
        return rates.specificity, rates.sensitivity


class SensitivityAtSpecificity(OperatingPoint):
    """The highest sensitivity (recall), `tp / (tp + fn)`, of the thresholds whose specificity is high enough.

    The thresholds are those of the bins of `AUC`: exact for scores that are multiples of `1 / (num_bins - 1)`.

    Args:
        specificity: the lower bound, in [0, 1].
        num_bins: the number of bins over [0, 1].
        from_logits: True if `preds` are logits, to which the sigmoid is applied.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if the bound is not in [0, 1], or there are fewer than 2 bins.

    Example:
        >>> metric = SensitivityAtSpecificity(0.5)
        >>> metric.update(target=jnp.array([0, 0, 1, 1]), preds=jnp.array([0.1, 0.4, 0.3, 0.8])).compute().item()
        1.0
    """

    specificity: float = static_field()

    @property
    def bound(self) -> float:
        """The argument `specificity`."""
        return self.specificity

    def tradeoff(self, rates: Rates) -> tuple[jax.Array, jax.Array]:
        """Returns sensitivity and specificity."""
        return rates.sensitivity, rates.specificity


class PrecisionAtRecall(OperatingPoint):
    """The highest precision, `tp / (tp + fp)`, of the thresholds whose recall is high enough.

    The thresholds are those of the bins of `AUC`: exact for scores that are multiples of `1 / (num_bins - 1)`. A
    threshold that accepts nothing has precision 0.

    Args:
        recall: the lower bound, in [0, 1].
        num_bins: the number of bins over [0, 1].
        from_logits: True if `preds` are logits, to which the sigmoid is applied.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if the bound is not in [0, 1], or there are fewer than 2 bins.

    Example:
        >>> metric = PrecisionAtRecall(0.8)
        >>> metric.update(target=jnp.array([0, 0, 1, 1]), preds=jnp.array([0.1, 0.4, 0.3, 0.8])).compute().item()
        0.66666...
    """

    recall: float = static_field()

    @property
    def bound(self) -> float:
        """The argument `recall`."""
        return self.recall

    def tradeoff(self, rates: Rates) -> tuple[jax.Array, jax.Array]:
        """Returns precision and recall."""
        return rates.precision, rates.sensitivity


class RecallAtPrecision(OperatingPoint):
    """The highest recall, `tp / (tp + fn)`, of the thresholds whose precision is high enough.

    The thresholds are those of the bins of `AUC`: exact for scores that are multiples of `1 / (num_bins - 1)`.

    Args:
        precision: the lower bound, in [0, 1].
        num_bins: the number of bins over [0, 1].
        from_logits: True if `preds` are logits, to which the sigmoid is applied.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if the bound is not in [0, 1], or there are fewer than 2 bins.

    Example:
        >>> metric = RecallAtPrecision(1.0)
        >>> metric.update(target=jnp.array([0, 0, 1, 1]), preds=jnp.array([0.1, 0.4, 0.3, 0.8])).compute().item()
        0.5
    """

    precision: float = static_field()

    @property
    def bound(self) -> float:
        """The argument `precision`."""
        return self.precision

    def tradeoff(self, rates: Rates) -> tuple[jax.Array, jax.Array]:
        """Returns recall and precision."""
        return rates.sensitivity, rates.precision
