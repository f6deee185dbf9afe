"""The old name of the Trainer."""

from __future__ import annotations

import warnings
from typing import Any

from elegy.trainer.trainer import Trainer


class Model(Trainer):
    """`Trainer` under its old name; constructing one warns with `DeprecationWarning`."""

    def __init__(self, *args: Any, **kwargs: Any):
        warnings.warn("elegy.Model is called elegy.Trainer now.", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)
