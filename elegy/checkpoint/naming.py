"""The names of checkpoints in a directory, and of temporary directories beside them."""

from __future__ import annotations

import os
import re
from pathlib import PurePath

STAGED = ".tmp-"
"""Suffix of a directory that is being written or deleted."""

REPLACED = ".old-"
"""Suffix of a complete checkpoint that is being replaced; it counts while the new one is missing."""

DAMAGED = ".damaged-"
"""Suffix of something that was moved out of a checkpoint's path and was not a checkpoint; it is never deleted."""

STEP = re.compile(r"step_(\d+)")

RUN_FILE = "run.json"
"""The file that a directory has if it is the folder of a run."""

CHECKPOINTS = "checkpoints"
"""The directory of the checkpoints in the folder of a run."""

LEFTOVER = re.compile(rf"step_\d+(?:{re.escape(STAGED)}|{re.escape(REPLACED)})[0-9a-f]+")


def checkpoint_name(step: int) -> str:
    """Returns the directory name of the checkpoint of a step.

    Example:
        >>> checkpoint_name(123)
        'step_00000123'
    """
    return f"step_{step:08d}"


def checkpoint_step(path: str | os.PathLike[str]) -> int:
    """Returns the step in a checkpoint's directory name.

    Raises:
        ValueError: if the name is not of the form `step_00000123`.

    Example:
        >>> checkpoint_step("runs/step_00000123")
        123
    """
    match = STEP.fullmatch(PurePath(path).name.partition(REPLACED)[0])
    if match is None:
        raise ValueError(f"{path}: the name is not that of a checkpoint, such as {checkpoint_name(123)}.")
    return int(match[1])
