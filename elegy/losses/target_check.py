"""Running the checks of labels where they apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_COMPUTES = ("call", "values", "terms", "update")
"""What a loss or a metric computes from target and predictions."""


def check_target(thing: Any, target: Any, preds: Any) -> None:
    """Runs the `target_check` of a loss or a metric, if it is a check of what is going to be computed.

    A user's subclass of a built-in class may compute something else, from labels that count from 1 for example, or
    from predictions that are a distribution. The check of the built-in class does not apply to it; one of its own does.

    Args:
        thing: a loss or a metric.
        target: ground truth, on the host.
        preds: predictions, on the host.

    Example:
        >>> import numpy as np
        >>> from elegy.losses import CrossEntropy
        >>> class FromOne(CrossEntropy):
        ...     def call(self, target, preds):
        ...         return super().call(target - 1, preds)
        >>> check_target(FromOne(), np.array([1, 2]), np.zeros((2, 2)))
        >>> check_target(CrossEntropy(), np.array([1, 2]), np.zeros((2, 2)))
        Traceback (most recent call last):
        ValueError: CrossEntropy: the target contains 2, but the last axis of preds has 2 classes...
    """
    cls = type(thing)
    computes = [getattr(cls, name) for name in _COMPUTES if hasattr(cls, name)]
    if _is_built_in(cls.target_check) and not all(map(_is_built_in, computes)):
        return
    thing.target_check(target, preds)


def _is_built_in(method: Callable[..., Any]) -> bool:
    return getattr(method, "__module__", "").partition(".")[0] == __name__.partition(".")[0]
