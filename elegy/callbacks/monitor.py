"""Compares the values of a log."""

from __future__ import annotations

import math
import re
from typing import Literal

import numpy as np

from elegy.callbacks.event import Event

Mode = Literal["auto", "min", "max"]

# Scores of which the largest value is the best. The word ends the name: what comes before it may be a data set's name.
_MAXIMIZED = re.compile(
    r"(^|_)(acc|accuracy|auc|auroc|auprc|prauc|f1|f_?beta|precision|recall|sensitivity|specificity|r2|explained_variance"
    r"|correlation|mcc|kappa|m?iou|jaccard(_index)?|dice|bleu|rouge(_?l)?|psnr|peak_signal_noise_ratio|ssim"
    r"|structural_similarity)(_score|_(at|of)_\w+|_top\w*|_macro|_micro|_weighted|_\d+)*$"
)
_MINIMIZED = re.compile(r"(loss|error)$")
# The loss of this name is the negative of the metric of this name.
_AMBIGUOUS = re.compile(r"(^|_)cosine_similarity(_\d+)?$")


def best_is(name: str) -> Literal["min", "max"] | None:
    """Tells by a log's name if its smallest or its largest value is the best; None if the name does not tell.

    Args:
        name: the log's name.

    Example:
        >>> best_is("val_accuracy"), best_is("val_word_error_rate"), best_is("val_cosine_similarity")
        ('max', 'min', None)
    """
    if _AMBIGUOUS.search(name):
        return None
    return "max" if _MAXIMIZED.search(name) and not _MINIMIZED.search(name) else "min"


class Monitor:
    """Reads one log and compares its values.

    Args:
        name: the log's name.
        mode: `"min"` if a smaller value is better, `"max"` if a larger one is. `"auto"` is `"max"` for names that
            end in the name of a score, such as accuracy, auc, f1, recall, r2, dice, bleu or correlation (all scores of
            `elegy.metrics`), or in one with `_macro`, `_top5`, `_at_10` or `_of_2` after it, and `"min"` for all other
            names.
        min_delta: how much better a value must be to count.

    Raises:
        TypeError: if the name is not a string, or `min_delta` not a number.
        ValueError: for an unknown mode; with `"auto"`, for `cosine_similarity`, of which the loss and the metric of
            this name have opposite signs.

    Example:
        >>> Monitor("val_accuracy").better(0.9, 0.8), Monitor("val_loss").better(0.9, 0.8)
        (True, False)
    """

    def __init__(self, name: str, mode: Mode = "auto", min_delta: float = 0.0):
        if not isinstance(name, str):
            raise TypeError(f"monitor={name!r}: it must be the name of one log, such as 'val_loss'.")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode={mode!r}: it must be 'auto', 'min' or 'max'.")
        if mode == "auto":
            found = best_is(name)
            if found is None:
                raise ValueError(
                    f"{name!r} may be the metric, of which the largest value is the best, or the loss, of which the "
                    "smallest one is: pass mode='max' or mode='min'."
                )
            mode = found
        if not isinstance(min_delta, (int, float, np.number)):
            raise TypeError(f"min_delta={min_delta!r}: it must be a number.")
        self.name = name
        self.mode: Mode = mode
        self.min_delta = abs(min_delta)

    def check(self, event: Event) -> None:
        """Checks before the first epoch that the log can exist.

        Args:
            event: the event of `on_train_begin`.

        Raises:
            ValueError: if a validation name is monitored, and the run has no validation data of that name.
        """
        if not self.name.startswith("val_"):
            return
        if not event.validates:
            raise ValueError(
                f"the monitored log {self.name!r} will not exist: the run has no validation data. Pass "
                "`validation_data` or `validation_split` to `fit`, or monitor a log of the training, such as "
                f"{self.name.removeprefix('val_')!r}."
            )
        if self.evaluation(event) is None:
            prefixes = ", ".join(f"{prefix}..." for prefix in event.evaluations)
            raise ValueError(
                f"the monitored log {self.name!r} will not exist: the names of the validation data begin otherwise. "
                f"They are {prefixes}."
            )

    def evaluation(self, event: Event) -> str | None:
        """Returns the one of `event.evaluations` that the log belongs to, or None."""
        return event.evaluation_of(self.name)

    def evaluated(self, event: Event) -> bool:
        """True if the log belongs to an evaluation that ran right before the event."""
        return self.evaluation(event) in event.evaluated

    def value(self, event: Event) -> float | None:
        """Reads the log; None for a validation name in an epoch that does not end with that validation.

        Args:
            event: an event with logs.

        Raises:
            ValueError: if the log does not exist; the message lists the logs.
        """
        logs = event.logs
        if self.name in logs:
            return float(logs[self.name])
        mine = self.evaluation(event)
        if mine is not None and not self.evaluated(event):
            return None
        raise ValueError(f"the monitored {self.name!r} is not logged. Logged are: {', '.join(logs) or 'nothing'}.")

    def better(self, value: float, reference: float | None) -> bool:
        """True if `value` is better than `reference`. Any number is better than None; NaN is never better.

        Args:
            value: the new value.
            reference: the value to compare with.
        """
        if math.isnan(value):
            return False
        if reference is None:
            return True
        if self.mode == "max":
            return value - self.min_delta > reference
        return value + self.min_delta < reference
