"""Joining the outputs of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from elegy.names import path_name
from elegy.types import PyTree


def join(outputs: Sequence[PyTree]) -> PyTree:
    """Concatenates the outputs of batches along the examples.

    Args:
        outputs: trees of arrays of shape `(rows, ...)`, one a batch.

    Raises:
        ValueError: when there are several and a leaf has no axis of examples, or other dimensions differ.

    Example:
        >>> join([np.array([1, 2]), np.array([3])])
        array([1, 2, 3])
    """
    if len(outputs) == 1:
        return outputs[0]

    def concatenate(path: Any, *leaves: Any) -> Any:
        shapes = {np.shape(leaf)[1:] if np.ndim(leaf) else None for leaf in leaves}
        if len(shapes) > 1 or None in shapes:
            found = ", ".join(str(np.shape(leaf)) for leaf in leaves[:3])
            raise ValueError(
                f"the output {path_name(path)} cannot be joined over batches: its shapes are {found}. Outputs need one "
                "row an example; `predict_iter` yields the outputs of each batch as they are."
            )
        return np.concatenate(leaves)

    return jax.tree_util.tree_map_with_path(concatenate, *outputs)
