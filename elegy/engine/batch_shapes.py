"""The shapes of the batches that the steps of a module were traced for: notes on errors, and a warning."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from elegy.callers import stacklevel_of_caller
from elegy.data.batch import rows
from elegy.loading.chunks import resized, structure
from elegy.names import differences
from elegy.types import PyTree

MANY_SHAPES = 8
"""The number of shapes of a user's batches (buckets, short last batches) before a warning."""


class BatchShapes:
    """Remembers the shapes of batches by phase.

    Attributes:
        takes_batches: by phase, True if an iterable of the user makes the batches. Batches that are cut from arrays
            are not counted.
    """

    def __init__(self) -> None:
        self.takes_batches: dict[str, bool] = {}
        self._seen: dict[str, list[PyTree]] = {"train": [], "test": [], "pred": []}
        self._trained: PyTree = None  # the structure of the inputs of the training
        self._first: PyTree = None  # that of the inputs with which the first state was made
        self._warned: set[str] = set()

    def initialised(self, inputs: PyTree) -> None:
        """Stores the structure of the inputs with which the first state was made."""
        self._first = structure(inputs)

    @contextlib.contextmanager
    def noting_batch(self, phase: str, batch: PyTree) -> Iterator[None]:
        """Adds a note to an error of a step about how this batch differs from the first."""
        seen = self._seen[phase]
        try:
            yield
            if not seen and self.takes_batches.get(phase):
                seen.append(batch)
        except Exception as error:
            if seen and (changes := "; ".join(differences(seen[0], batch))):
                error.add_note(f"This batch differs from the first: {changes}.")
            raise

    @contextlib.contextmanager
    def noting_inputs(self, phase: str, inputs: PyTree) -> Iterator[None]:
        """Adds a note to an error of a trace about how the inputs differ from earlier ones."""
        try:
            yield
            if phase == "train" and self._trained is None:
                self._trained = structure(inputs)
        except Exception as error:
            told = any("differs from the first" in note for note in getattr(error, "__notes__", ()))
            known, what = self._trained, "those of the training"
            if known is None:
                known, what = self._first, "the first ones, with which the module was initialised"
            if known is not None and not told:
                before = resized(known, rows(inputs))
                if changes := "; ".join(differences({"inputs": before}, {"inputs": structure(inputs)})):
                    error.add_note(f"The inputs differ from {what}: {changes}.")
            raise

    def traced(self, phase: str, batch: PyTree) -> None:
        """Counts the batch of a trace, and warns once for each phase if a user's batches have many shapes."""
        if not self.takes_batches.get(phase):
            return
        seen = self._seen[phase]
        if any(batch_key(batch) == batch_key(other) for other in seen):
            return  # the same shape with another state, or with a mask
        if len(seen) == MANY_SHAPES and phase not in self._warned:
            self._warned.add(phase)
            changes = "; ".join(differences(seen[0], batch))
            warnings.warn(
                f"the {phase} step is compiled for the {len(seen) + 1}th shape of batch: {changes}. Every new shape or "
                "dtype costs a compilation. Pad the examples to a few lengths (buckets), and keep one number of rows.",
                stacklevel=stacklevel_of_caller(),
            )
        seen.append(batch)


def batch_key(batch: PyTree) -> Any:
    """Returns a hashable key for the structure of a batch."""
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
