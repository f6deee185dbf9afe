"""One source's batches for one phase, pass after pass, in the form that suits the program."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from elegy.data import ArraySource, EpochPlan, IterableSource, check_finite, prefetch, rows, unpack
from elegy.data.batch import named_leaves
from elegy.distributed import gather, together
from elegy.engine.executor import Executor
from elegy.engine.program import CompiledPhase
from elegy.engine.state_buffer import StateBuffer
from elegy.loading.chunks import BatchLayout, Chunk, array_chunks, bytes_of, iterable_chunks, resized, structure
from elegy.loading.multihost import first_of_share, joined_chunks, longest, share_rows
from elegy.module.levels import level_of
from elegy.trainer import checks
from elegy.types import Batch, PyTree

logger = logging.getLogger("elegy")

RESIDENT_BYTES = 256 * 2**20
"""In-memory data up to this size is kept on the device."""

RESIDENT_BYTES_ON_CPU = 32 * 2**20
"""The same for the CPU, whose memory is the host's: a second copy of large data costs more than it saves."""

STACK_BYTES = 2 * 2**20
"""Batches that are gathered on the host make chunks of this size, twice it where they need not be gathered: larger
ones fall out of the processor's caches."""

OUTPUT_BYTES = 16 * 2**20
"""The outputs of one execution that predicts have about this size at most."""

_ALIGNMENT = 64


class Cursor(NamedTuple):
    """How much of a pass is done already.

    Args:
        batches: the number of batches.
        examples: the number of examples; over arrays, they are the first of the pass's order.
    """

    batches: int = 0
    examples: int = 0


_BEGINNING = Cursor()


class Feeder:
    """Gives one source's batches to one phase, pass after pass.

    Args:
        executor: runs the steps.
        phase: the phase that is fed.
        source: where batches come from.
        batch_size: rows of a batch, for arrays.
        limit: how many batches a pass has at most.
        drop_remaining: whether a short last batch is left out.
        what: the call, for messages.
        fuse: how many steps go into one execution, or `"auto"`.
        finite: whether to refuse batches of an iterable that hold NaN or infinity.
        once: whether there is only one pass, so that a copy of the data on the device would not pay.
    """

    def __init__(
        self,
        executor: Executor,
        phase: CompiledPhase,
        source: ArraySource | IterableSource,
        *,
        batch_size: int | None,
        limit: int | None,
        what: str,
        drop_remaining: bool = False,
        fuse: int | str = 1,
        finite: bool = False,
        once: bool = False,
    ):
        self.executor, self.phase, self.source, self.limit, self.fuse = executor, phase, source, limit, fuse
        self.finite, self.once, self._what = finite, once, what
        self.plan: EpochPlan | None = None
        if isinstance(source, ArraySource):
            self.plan = EpochPlan(source.size, batch_size, drop_remaining, limit, what)  # type: ignore[arg-type]
        elif batch_size is not None:
            raise ValueError(
                f"batch_size={batch_size} was given to {what} with an iterable, whose batches have their size already."
            )
        elif drop_remaining:
            raise ValueError(
                f"drop_remaining was given to {what} with an iterable, whose batches are taken as they come. Let the "
                "iterable leave the short one out."
            )
        self.form: BatchLayout | None = None
        self._placed: PyTree = None
        self._pass: Iterator[Batch] | None = None
        self._first: Batch | None = None
        self._placed_at = False  # whether the pass was put in its place, so that its first batch is still to come
        self._known: int | None = None
        if isinstance(source, IterableSource):
            self._known = None if source.one_shot else source.steps
            self._known = longest(self._known) if self._joins else self._known

    def beside(
        self, source: ArraySource | IterableSource | None, batch_size: Any, steps: Any, fuse: int | str
    ) -> Feeder | None:
        """Gives the validation batches of the run that this one feeds.

        Args:
            source: the validation data, if there is any.
            batch_size: rows of a validation batch; for arrays those of a training batch where it is `None`.
            steps: how many validation batches to see at most; `None` for all.
            fuse: how many steps go into one execution, or `"auto"`.

        Raises:
            ValueError: when a number does not fit the data, or there is none.
            TypeError: when it is no integer.
        """
        size = checks.positive("validation_batch_size", batch_size, optional=True)
        limit = checks.positive("validation_steps", steps, optional=True)
        if source is None:
            for name, value in (("validation_batch_size", size), ("validation_steps", limit)):
                if value is not None:
                    raise ValueError(
                        f"{name}={value}, but there is no validation data: pass validation_data or validation_split."
                    )
            return None
        if size is None and isinstance(source, ArraySource):
            size = self.batch_size
        return Feeder(
            self.executor,
            "test",
            source,
            batch_size=size,
            limit=limit,
            what="validation",
            fuse=fuse,
            finite=self.finite,
        )

    @property
    def steps(self) -> int | None:
        """The number of batches in a pass, where it is known."""
        if self.plan is not None:
            return self.plan.steps
        return self.limit or self._known

    def exhausted(self, cursor: Cursor) -> bool:
        """Whether a pass has no batch left, as far as that is known."""
        if self.plan is not None:
            return self.plan.exhausted(cursor.batches, cursor.examples)
        return cursor.batches == self.steps

    @property
    def batch_size(self) -> int | None:
        """The rows of a full batch, where they are known."""
        return None if self.plan is None else self.plan.batch_size

    @property
    def _joins(self) -> bool:
        """Whether every process brings its own batches, to be joined."""
        return self.plan is None and self.executor.strategy.processes > 1

    def first_batch(self) -> Batch:
        """The first batch of the next pass, as a loader gives it; it will be given again."""
        if self.plan is not None:
            assert isinstance(self.source, ArraySource)
            return self.source.slice(*self.plan.batch_rows(0))
        if self._pass is None:
            self._first = first_of_share(self._begin, self._what) if self._joins else self._begin()
        return self._first

    def _begin(self) -> Batch:
        """Begins a pass of an iterable."""
        self._pass = self.source.batches(self.limit)  # type: ignore[union-attr]
        first = next(self._pass)
        self._check_values(first, 0)
        return first

    def state(self, taken: int, *, own: bool = True) -> dict[str, Any] | None:
        """Where an iterable stands, fit for JSON; `None` for arrays, whose cursor says it all.

        Args:
            taken: how many batches of the running pass are done.
            own: whether to ask an iterable that has a state of its own for it; otherwise batches are counted.

        Raises:
            CheckpointError: when the iterable's own state cannot be had or stored.
        """
        return self.source.state(taken, own=own) if isinstance(self.source, IterableSource) else None

    def end(self) -> None:
        """The running pass is over."""
        if isinstance(self.source, IterableSource):
            self.source.end()

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Makes the next pass go on where `state` was taken."""
        if state is not None and isinstance(self.source, IterableSource) and self.source.load_state(state):
            self._pass, self._placed_at = self.source.batches(self.limit), True

    def chunks(
        self, buffer: StateBuffer, order: np.ndarray | None, limit: int | None, start: Cursor = _BEGINNING
    ) -> Iterator[Chunk]:
        """One pass over the data.

        Args:
            buffer: holds the state.
            order: the order of the examples, for arrays; `None` for their own.
            limit: how many batches to give at most.
            start: what an interrupted pass has seen already.
        """
        form = self._decide(buffer)
        if self.plan is not None:
            assert isinstance(self.source, ArraySource)
            return self._array_chunks(self._for_step(self.source.batch, buffer.cls), form, order, limit, start)
        self.first_batch()
        assert self._pass is not None
        batches = self._pass if self._placed_at else itertools.chain([self._first], self._pass)
        self._pass, self._placed_at = None, False

        def layout_of(batch: PyTree) -> BatchLayout:
            return dataclasses.replace(form, masked=form.masked and self.executor.can_mask(self.phase, buffer, batch))

        if self._joins:
            given = itertools.islice(self._checked(batches, buffer.cls, start.batches), limit)
            return joined_chunks(
                given, self._for_step(self._first, buffer.cls), form, self.executor.strategy, start.batches
            )
        return iterable_chunks(
            itertools.islice(self._checked(batches, buffer.cls, start.batches), limit),
            layout_of,
            self.executor.strategy,
            start.batches,
        )

    def _array_chunks(
        self, data: Batch, form: BatchLayout, order: np.ndarray | None, limit: int | None, start: Cursor
    ) -> Iterator[Chunk]:
        plan, source = self.plan, self.source
        assert plan is not None
        assert isinstance(source, ArraySource)
        source = dataclasses.replace(source, batch=data)
        if self.phase == "train" and order is None and source.on_host:
            # Copies as after shuffling: steps may still read slices of the user's arrays when callbacks hear of them.
            order = np.arange(source.size)
        if self.exhausted(start):
            return prefetch((), 0)
        if start.examples:
            steps = None if plan.limit is None else plan.limit - start.batches
            plan = dataclasses.replace(plan, limit=steps, done=start.examples)
        if form.resident and self._placed is None:
            # A copy, because on the CPU a placed array may share the memory of the user's.
            copies = jax.tree.map(lambda a: _aligned_copy(a) if isinstance(a, np.ndarray) else a, source.batch)
            self._placed = self.executor.strategy.place(copies, "whole")
        count = plan.steps if limit is None else min(limit, plan.steps)
        return array_chunks(source, plan, order, form, self.executor.strategy, self._placed, count, start.batches)

    def _checked(self, batches: Iterator[Batch], cls: type, start: int) -> Iterator[Batch]:
        first = structure(self._first)
        for number, batch in enumerate(batches, start):
            if number:
                self._check_values(batch, number)
            if level_of(cls, self.phase) != "core":
                checks.same_structure(first, batch, number)
            if self._joins:
                checks.same_shapes(first, batch, number)
            yield self._for_step(batch, cls)

    def _check_values(self, batch: Batch, number: int) -> None:
        if not rows(batch, f"batch {number}: ") and not self._joins:  # a process's share may be empty, a batch not
            raise ValueError(
                f"batch {number} of {self._what} has no rows: {_shapes(batch)}. Let the iterable leave empty batches "
                "out, so that each has at least one example."
            )
        if self.finite:
            check_finite(batch, f"batch {number}")

    def _for_step(self, batch: Batch, cls: type) -> Batch:
        """A batch as a step takes it: inputs alone to predict, and exactly what was given where users unpack it."""
        if self.phase == "pred":
            return unpack(batch)[0]
        if type(batch) is tuple and len(batch) == 1 and level_of(cls, self.phase) != "high":
            return batch[0]
        return batch

    def check_labels(self, buffer: StateBuffer) -> None:
        """Runs the checks of the losses and metrics on labels: all that are in arrays, or those of the first batch.

        Each process looks at its own share's.

        Raises:
            ValueError: when labels do not fit the outputs, or weights are none.
            RuntimeError: when another process's do not.
        """
        batch = self.first_batch()
        if self._joins:
            together(lambda: self._check_labels(buffer, batch), f"the check of the labels of {self._what}")
        else:
            self._check_labels(buffer, batch)

    def _check_labels(self, buffer: StateBuffer, batch: Batch) -> None:
        if self.phase != "pred" and rows(batch):
            whole = self.source.batch if isinstance(self.source, ArraySource) else None
            outputs_of = functools.partial(self.executor.outputs, self.phase, buffer)
            checks.labels(buffer, self.phase, batch, outputs_of, whole, self.source.class_weight)

    def prepare(self, buffer: StateBuffer) -> StateBuffer:
        """Chooses the form of the batches and traces the step, so that mistakes show before anything is compiled.

        Returns:
            A buffer with the structure that a step leaves, to trace other steps with.
        """
        form = self._decide(buffer)
        if not self.executor.compiles(buffer.cls, self.phase):
            return buffer
        batch, mask = self._structs(structure(self._for_step(self.first_batch(), buffer.cls)), form)
        return buffer.outline(self.executor.program(self.phase, buffer, batch, mask).state)

    def _structs(self, batch: PyTree, form: BatchLayout) -> tuple[PyTree, PyTree]:
        """The structures of a full batch and its mask, as a step of this form takes them."""
        count = form.rows(rows(batch))
        if self._joins:
            processes = self.executor.strategy.processes
            count = processes * share_rows(form, int(gather(np.int64(rows(batch))).max()), processes)
        masked = form.masked and self.phase != "pred"
        return resized(batch, count), jax.ShapeDtypeStruct((count,), np.dtype(bool)) if masked else None

    def _decide(self, buffer: StateBuffer) -> BatchLayout:
        """Chooses the form of the batches: once, from the program and the data."""
        if self.form is None:
            self.form = BatchLayout()
            if self.executor.compiles(buffer.cls, self.phase):
                batch = structure(self._for_step(self.first_batch(), buffer.cls))
                plan, replicas = self.plan, self.executor.strategy.replicas
                uneven = plan is None or plan.size % plan.batch_size != 0 or plan.batch_size % replicas != 0
                masked = uneven and self.executor.can_mask(self.phase, buffer, batch)
                steps = self._steps(buffer, batch, BatchLayout(masked=masked, multiple=replicas))
                source = self.source
                resident = (
                    steps > 1
                    and isinstance(source, ArraySource)
                    and (not source.on_host or (source.nbytes <= _resident_bytes() and not self.once))
                )
                if self.fuse == "auto" and not resident:
                    most = STACK_BYTES if self.phase == "train" else 2 * STACK_BYTES
                    steps = min(steps, _power_of_two(most / bytes_of(batch)))
                self.form = BatchLayout(steps, masked, resident, replicas)
        return self.form

    def _steps(self, buffer: StateBuffer, batch: PyTree, form: BatchLayout) -> int:
        if self._joins:
            return 1
        if isinstance(self.fuse, int):
            return self.fuse
        if self.plan is None:
            return 1
        program = self.executor.program(self.phase, buffer, *self._structs(batch, form))
        steps = min(program.steps_per_execution, 2 ** (self.plan.steps - 1).bit_length())
        if self.phase == "pred":
            steps = min(steps, _power_of_two(OUTPUT_BYTES / bytes_of(program.outputs))) if program.rowwise else 1
        logger.info("%s: %d steps in one execution", self.phase, steps)
        return steps


def _resident_bytes() -> int:
    return min(RESIDENT_BYTES, RESIDENT_BYTES_ON_CPU) if jax.default_backend() == "cpu" else RESIDENT_BYTES


def _shapes(batch: Batch) -> str:
    return ", ".join(f"{name} has the shape {tuple(leaf.shape)}" for name, leaf in named_leaves(batch))


def _power_of_two(most: float) -> int:
    return 2 ** int(math.log2(max(most, 1.0)))


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    """A copy that the CPU backend can share as it is; it copies what is not aligned again, five times slower."""
    buffer = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy
