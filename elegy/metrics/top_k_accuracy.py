"""Top-k accuracy."""

from __future__ import annotations

from elegy.metrics.accuracy import Accuracy
from elegy.metrics.decisions import Average
from elegy.pytree import static_field


class TopKAccuracy(Accuracy):
    """The fraction of examples whose class is among the `k` highest scores: `Accuracy(top_k=k)` under its own name.

    Args:
        k: how many of the highest scores count as predicted.
        num_classes: the number of classes; needed for an average other than `micro`.
        average: as for `Accuracy`.
        ignore_index: a value of the target that is not counted.
        class_id: counts only this class.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `k` is not an integer of 1 or more.

    Example:
        >>> import jax.numpy as jnp
        >>> metric = TopKAccuracy(2).update(target=jnp.array([1, 2]), preds=jnp.array([[3.0, 2.0, 1.0]] * 2))
        >>> metric.compute().item(), metric.name
        (0.5, 'top_k_accuracy')
    """

    threshold: float = static_field(default=0.5, init=False)
    num_classes: int | None = static_field(default=None, kw_only=True)
    average: Average | None = static_field(default="micro", kw_only=True)
    top_k: int | None = static_field(default=None, init=False)
    k: int = static_field(default=5)

    def __post_init__(self) -> None:
        """Takes `k` as the option `top_k` of `Accuracy`."""
        vars(self).update(top_k=self.k)
        super().__post_init__()
