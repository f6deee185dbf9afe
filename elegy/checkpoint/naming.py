"""The names of checkpoints in a directory, and of what stands beside them for a while."""

from __future__ import annotations

import os
import re
from pathlib import PurePath

STAGED = ".tmp-"
"""Marks what is being written, or deleted."""

REPLACED = ".old-"
"""Marks a complete checkpoint that stands aside, and counts while the name before the mark has none."""

DAMAGED = ".damaged-"
"""Marks what stood in a checkpoint's place, was none, and was moved aside: nobody reads or deletes it."""

STEP = re.compile(r"step_(\d+)")

LEFTOVER = re.compile(rf"step_\d+(?:{re.escape(STAGED)}|{re.escape(REPLACED)})[0-9a-f]+")


def checkpoint_name(step: int) -> str:
    """The directory name of the checkpoint of a step.

    Example:
        >>> checkpoint_name(123)
        'step_00000123'
    """
    return f"step_{step:08d}"


def checkpoint_step(path: str | os.PathLike[str]) -> int:
    """The step that a checkpoint's directory name says.

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
