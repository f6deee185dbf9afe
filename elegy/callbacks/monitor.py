"""Which of two values of a log is better."""

from __future__ import annotations

import math
import re
from typing import Literal

from elegy.callbacks.event import Event

Mode = Literal["auto", "min", "max"]

_MAXIMIZED = re.compile(r"(^|_)(acc|auc|auroc|f1|precision|recall|r2)")
_MINIMIZED = re.compile(r"(loss|error)$")


class Monitor:
    """Reads one log and compares its values.

    Args:
        name: the log's name.
        mode: `"min"` where less is better, `"max"` where more is; `"auto"` takes `"max"` for names with a part that
            begins like accuracy, auc, f1, precision, recall or r2, unless they end in loss or error.
        min_delta: how much better a value must be to count.

    Raises:
        ValueError: for an unknown mode.

    Example:
        >>> Monitor("val_accuracy").better(0.9, 0.8), Monitor("val_loss").better(0.9, 0.8)
        (True, False)
    """

    def __init__(self, name: str, mode: Mode = "auto", min_delta: float = 0.0):
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode={mode!r}: it must be 'auto', 'min' or 'max'.")
        if mode == "auto":
            mode = "max" if _MAXIMIZED.search(name) and not _MINIMIZED.search(name) else "min"
        self.name = name
        self.mode: Mode = mode
        self.min_delta = abs(min_delta)

    def check(self, event: Event) -> None:
        """Checks what is known of the log before the first epoch.

        Args:
            event: the event of `on_train_begin`.

        Raises:
            ValueError: for a validation name in a run without validation.
        """
        if self.name.startswith("val_") and not event.validates:
            raise ValueError(
                f"the monitored {self.name!r} will not be logged: the run has no validation data. Pass "
                "`validation_data` or `validation_split` to `fit`, or monitor a log of the training, such as "
                f"{self.name.removeprefix('val_')!r}."
            )

    def value(self, event: Event) -> float | None:
        """Reads the log; None for a validation name in an epoch without validation.

        Args:
            event: an event with logs.

        Raises:
            ValueError: when the log does not exist; the message lists those that do.
        """
        logs = event.logs
        if self.name in logs:
            return float(logs[self.name])
        if self.name.startswith("val_") and not any(name.startswith("val_") for name in logs):
            return None
        raise ValueError(f"the monitored {self.name!r} is not logged. Logged are: {', '.join(logs) or 'nothing'}.")

    def better(self, value: float, reference: float | None) -> bool:
        """Whether `value` beats `reference`; any number beats None, and NaN beats nothing.

        Args:
            value: the new value.
            reference: the value to beat.
        """
        if math.isnan(value):
            return False
        if reference is None:
            return True
        if self.mode == "max":
            return value - self.min_delta > reference
        return value + self.min_delta < reference
