"""Iterates, checks and resumes the batches of one source."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Generic, TypeVar

import jax

from elegy.data import ArraySource, IterableSource, check_finite, prefetch
from elegy.data.batch import named_leaves, rows
from elegy.data.plan import EpochPlan
from elegy.loading.chunks import BatchLayout, Chunk, array_chunks, iterable_chunks, structure
from elegy.loading.device_copies import DeviceCopies
from elegy.loading.part import WHOLE, Cursor, Part
from elegy.strategies import Strategy
from elegy.types import Batch, PyTree

S = TypeVar("S", bound=ArraySource | IterableSource)
LayoutOf = Callable[[Batch], BatchLayout]
Chunks = Generator[Chunk, None, None]

_SAME_FORM = (
    "Arrays may change their shape from batch to batch, but not the dict, list or tuple around them: yield every batch "
    "in the same form."
)


def as_given(batch: Batch) -> Batch:
    """The view of a step that takes batches as they are."""
    return batch


class BatchLoader(abc.ABC, Generic[S]):
    """Iterates the batches of one source, pass after pass, and can be resumed.

    It does not depend on the module or the engine. `ArrayLoader` reads arrays, `IterableLoader` an iterable of batches,
    and `multihost.MultihostLoader` joins the iterables of several processes.

    Args:
        limit: the largest number of batches in a pass; None for all.
        what: the call, for messages: `"fit"`, `"validation"`, `"evaluate"` or `"predict"`.
        view: converts a batch for the step, for example to its inputs.
        same_structure: True to require that every batch has the tree structure of the first; shapes may differ.

    Attributes:
        source: the source of the batches.
        plan: the batches of a pass over arrays; None for an iterable.
        shared: True if each process has its own batches, which are joined.
    """

    source: S
    plan: EpochPlan | None = None
    shared: bool = False

    def __init__(
        self, *, limit: int | None, what: str, view: Callable[[Batch], Batch] = as_given, same_structure: bool = True
    ):
        self.limit, self.what, self.view, self.same_structure = limit, what, view, same_structure

    @property
    @abc.abstractmethod
    def steps(self) -> int | None:
        """The number of batches in a pass; None if unknown."""

    @property
    def batch_size(self) -> int | None:
        """The rows of a full batch; None if unknown."""
        return None if self.plan is None else self.plan.batch_size

    def exhausted(self, cursor: Cursor) -> bool:
        """True if a pass has no batch left. For an iterable of unknown length, False."""
        return cursor.batches == self.steps

    @property
    def on_device(self) -> bool:
        """True if an earlier loader has placed all of the data, so that another pass need not transfer it."""
        return False

    @abc.abstractmethod
    def first_batch(self) -> Batch:
        """Returns the first batch of the next pass, unchanged; the pass yields it again."""

    @abc.abstractmethod
    def chunks(self, layout_of: LayoutOf, strategy: Strategy, part: Part = WHOLE) -> Chunks:
        """Yields the chunks of one pass.

        Args:
            layout_of: a function from a batch to the layout of batches with its example shapes.
            strategy: places the batches.
            part: which batches; iterables have their own order.
        """

    def rows_of(self, layout: BatchLayout) -> int:
        """Returns the rows of a full batch in this layout, including padding."""
        return layout.rows(rows(self.first_batch()))

    def state(self, taken: int, *, own: bool = True) -> dict[str, Any] | None:
        """Returns the position in an iterable as JSON values; None for arrays, for which a `Cursor` is enough.

        Args:
            taken: how many batches of the running pass are done.
            own: True to use the iterable's own state, if it has one; otherwise batches are counted.

        Raises:
            CheckpointError: if the iterable's own state cannot be read or stored.
        """
        return None

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Moves to the position of `state`, from which the next pass continues."""

    def start_at(self, epoch: int) -> None:
        """Sets the index of the first epoch, with which an iterable may be reseeded."""

    def end(self) -> None:
        """Ends the running pass."""

    def may_end(self) -> bool:
        """Lets the last pass over an iterator have fewer batches than the limit; returns True if it is an iterator."""
        return False

    def is_over(self) -> bool:
        """True if `may_end` was called, and no batch is left; may read the first batch of the next pass."""
        return False


class ArrayLoader(BatchLoader[ArraySource]):
    """Cuts arrays into batches.

    Args:
        source: the arrays.
        batch_size: rows of a batch.
        drop_remaining: True to leave out a short last batch.
        copies: places resident data, and keeps it for other loaders.
        **options: as for `BatchLoader`.
    """

    plan: EpochPlan

    def __init__(
        self,
        source: ArraySource,
        batch_size: int | None,
        drop_remaining: bool = False,
        *,
        copies: DeviceCopies | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self.source, self._copies = source, DeviceCopies(0) if copies is None else copies
        self.plan = EpochPlan(source.size, batch_size, drop_remaining, self.limit, self.what)  # type: ignore[arg-type]
        self._on_device: PyTree = None
        self._first: Batch | None = None

    @property
    def steps(self) -> int:
        """The number of batches in a pass."""
        return self.plan.steps

    def exhausted(self, cursor: Cursor) -> bool:
        """True if a pass has no batch left."""
        return self.plan.exhausted(cursor.batches, cursor.examples)

    @property
    def on_device(self) -> bool:
        """True if an earlier loader has placed the arrays; NumPy arrays may have changed since."""
        return self._copies.has(self.view(self.source.batch))

    def first_batch(self) -> Batch:
        """Returns the first rows of the arrays; examples of a data set are read once for all calls."""
        if not self.source.examples:
            return self.source.slice(*self.plan.batch_rows(0))
        if self._first is None:
            self._first = self.source.slice(*self.plan.batch_rows(0))
        return self._first

    def chunks(self, layout_of: LayoutOf, strategy: Strategy, part: Part = WHOLE) -> Chunks:
        """Yields the chunks of one pass over the arrays; see `BatchLoader.chunks`."""
        plan, start = self.plan, part.start
        source = dataclasses.replace(self.source, batch=self.view(self.source.batch))
        if self.exhausted(start):
            return prefetch((), 0)
        if start.examples:
            steps = None if plan.limit is None else plan.limit - start.batches
            plan = dataclasses.replace(plan, limit=steps, done=start.examples)
        layout = layout_of(self.view(self.first_batch()))
        if layout.resident and self._on_device is None:
            self._on_device = self._copies.place(source.batch, strategy)
        return array_chunks(source, plan, layout, strategy, self._on_device, part)


class IterableLoader(BatchLoader[IterableSource]):
    """Reads an iterable of batches.

    Args:
        source: the iterable.
        finite: True to refuse batches with NaN or infinity.
        **options: as for `BatchLoader`.
    """

    def __init__(self, source: IterableSource, finite: bool = False, **options: Any):
        super().__init__(**options)
        self.source, self.finite = source, finite
        self._pass: Iterator[Batch] | None = None
        self._first: Batch | None = None
        self._form: Any = None  # the tree structure of the first batch of the first pass
        self._resumed = False  # True if the pass was moved to a position, and its first batch is not read yet
        self._steps = None if source.one_shot else source.steps

    @property
    def batch_size(self) -> int | None:
        """The rows of a full batch, if rows are batched here; None if unknown."""
        return self.source.batch_size

    @property
    def steps(self) -> int | None:
        """The number of batches in a pass; None if unknown."""
        return self.limit or self._steps

    def first_batch(self) -> Batch:
        """Returns the first batch of the next pass; the pass yields it again."""
        if self._pass is None:
            self._first = self._begin()
        return self._first

    def _begin(self) -> Batch:
        self._pass = self.source.batches(self.limit)
        first = next(self._pass)
        self._check_values(first, 0)
        return first

    def chunks(self, layout_of: LayoutOf, strategy: Strategy, part: Part = WHOLE) -> Chunks:
        """Yields the chunks of one pass over the iterable; see `BatchLoader.chunks`."""
        batches, like = self._batches(part), self.view(self._first)
        return iterable_chunks(batches, layout_of, strategy, part.start.batches, like, part.chunk_size)

    def _batches(self, part: Part) -> Iterator[Batch]:
        """Returns the batches of the next pass, converted by `view`; reads the first one at once.

        From here on, batches may be read ahead, up to the last one that the pass may need.
        """
        self.first_batch()
        assert self._pass is not None
        batches = self._pass if self._resumed else itertools.chain([self._first], self._pass)
        self._pass, self._resumed = None, False
        first, limit = part.start.batches, part.limit
        self.source.read_ahead_to(self.limit if limit is None else min(first + limit, self.limit or math.inf))
        return itertools.islice(self._checked(batches, first), limit)

    def _checked(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        first = structure(self._first)
        form = jax.tree.structure(first)
        self._form = form if self._form is None else self._form
        if self.same_structure and form != self._form:
            raise ValueError(
                f"the first batch of this pass over the data of {self.what} has the structure {form}, but the batches "
                f"of earlier passes have {self._form}. {_SAME_FORM}"
            )
        for number, batch in enumerate(batches, start):
            if number:
                self._check_values(batch, number)
            if self.same_structure:
                self._check_structure(first, batch, number)
            yield self.view(batch)

    def _check_values(self, batch: Batch, number: int) -> None:
        self._check_rows(batch, number)
        if self.finite:
            check_finite(batch, f"batch {number}")

    def _check_rows(self, batch: Batch, number: int) -> None:
        if not rows(batch, f"batch {number}: "):
            shapes = ", ".join(f"{name} has the shape {tuple(leaf.shape)}" for name, leaf in named_leaves(batch))
            raise ValueError(
                f"batch {number} of {self.what} has no rows: {shapes}. Let the iterable leave empty batches "
                "out, so that each has at least one example."
            )

    def _check_structure(self, first: PyTree, batch: Batch, number: int) -> None:
        """Checks that a later batch has the tree structure of the first; shapes and dtypes may differ.

        Raises:
            ValueError: if the trees differ; the message shows both.
        """
        old: object = jax.tree.structure(first)
        new: object = jax.tree.structure(batch)
        if old != new:
            raise ValueError(f"batch {number} has the structure {new}, but the first batch has {old}. {_SAME_FORM}")

    def state(self, taken: int, *, own: bool = True) -> dict[str, Any] | None:
        """Returns the position in the iterable; see `BatchLoader.state`."""
        return self.source.state(taken, own=own)

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Moves to the position of `state`, from which the next pass continues."""
        if state is not None and self.source.load_state(state):
            self._pass, self._resumed = self.source.batches(self.limit), True

    def start_at(self, epoch: int) -> None:
        """Sets the index of the first epoch; see `BatchLoader.start_at`."""
        if self.source.start_at(epoch):
            self._pass, self._resumed = self.source.batches(self.limit), True

    def end(self) -> None:
        """Ends the running pass."""
        self.source.end()

    def may_end(self) -> bool:
        """Lets the last pass over an iterator be short; see `BatchLoader.may_end`."""
        self.source.may_end = self.source.one_shot
        return self.source.may_end

    def is_over(self) -> bool:
        """True if no batch is left; see `BatchLoader.is_over`."""
        if self._pass is not None and not self._resumed:
            return False  # its first batch was read
        batches = self._pass if self._pass is not None else self.source.batches(self.limit)
        first = next(batches, None)
        if first is None:
            return True
        self._check_values(first, 0)
        if self._resumed:
            self._pass = itertools.chain([first], batches)
        else:
            self._first, self._pass = first, batches
        return False
