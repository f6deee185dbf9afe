"""Names and values as MLflow takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from elegy.loggers.values import flat

_AT_ONCE = 100  # the limit of MLflow for the parameters of one request
_LONGEST = 6000  # its limit for the characters of a parameter


def metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Returns values under names that MLflow and its file store accept.

    Example:
        >>> metrics({"grad_norm": 5.0, "grad_norm/bias": 3.0})
        {'grad_norm/all': 5.0, 'grad_norm/bias': 3.0}
    """
    found = {allowed(name): value for name, value in values.items()}
    folders = {str(folder) for name in found for folder in PurePosixPath(name).parents}
    return {f"{name}/all" if name in folders else name: value for name, value in found.items()}


def parameters(config: Mapping[str, Any]) -> Iterator[list[tuple[str, str]]]:
    """Returns the names and texts of a configuration, as many at once as a request may have."""
    params = [(allowed(name), str(value)[:_LONGEST]) for name, value in flat(config).items()]
    for start in range(0, len(params), _AT_ONCE):
        yield params[start : start + _AT_ONCE]


def allowed(name: str) -> str:
    """Returns a name that MLflow accepts: it refuses whole records for a character, or a part such as `..`.

    Example:
        >>> allowed("learning_rate/*"), allowed("/a//b[0]")
        ('learning_rate/_', 'a/b_0_')
    """
    parts = re.sub(r"[^\w.\- :/]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def checked_tags(tags: dict[str, str]) -> dict[str, str]:
    """Returns the tags of a run.

    Raises:
        TypeError: if one has a name that other libraries give to an argument.

    Example:
        >>> checked_tags({"run_name": "first"})
        Traceback (most recent call last):
        ...
        TypeError: MLflow() takes 'run_name' for a tag: write `name=`.
    """
    for theirs, ours in (("experiment_name", "experiment"), ("run_name", "name"), ("save_dir", "directory")):
        if theirs in tags:
            raise TypeError(f"MLflow() takes {theirs!r} for a tag: write `{ours}=`.")
    return tags
