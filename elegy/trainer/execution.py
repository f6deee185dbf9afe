"""How the batches of a loader are executed: decided once a phase, from the program, the loader and the strategy."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from elegy.callbacks import CallbackList
from elegy.callbacks.interval import interval_steps
from elegy.data import ArraySource, IterableSource, unpack
from elegy.engine.executor import Executor
from elegy.engine.measures import with_measures
from elegy.engine.program import CompiledPhase, Program
from elegy.engine.state_buffer import StateBuffer
from elegy.engine.trip_counts import trip_counts
from elegy.loading import BatchLoader, batch_loader
from elegy.loading.batch_loader import Chunks, as_given
from elegy.loading.chunks import BatchLayout, bytes_of, resized, structure
from elegy.loading.multihost import agreed
from elegy.loading.part import WHOLE, Part
from elegy.metrics import LossesAndMetrics
from elegy.module.levels import level_of
from elegy.module.row_independence import RowProbe
from elegy.trainer import checks
from elegy.types import Batch, Every, PyTree

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

SAMPLE_ROWS = 64
"""Rows of arrays in which it is looked whether rows depend on one another."""


@dataclasses.dataclass(frozen=True)
class ExecutionPlan:
    """How the batches of one loader run in one phase.

    Args:
        loader: iterates the batches.
        layout: how batches are grouped and padded.
        state: the structure of the state after a step; None if the phase is not compiled.
        names: the names of the values that a step logs; None if the phase is not compiled.
        used: returns the fields of the state that a step reads or changes; None if the phase is not compiled.
        measures: the losses and metrics of an evaluation that replace those of the state; None for those.
        row_probe: a function of a state and a batch; its probe tests if batches of such examples may be padded.
    """

    loader: BatchLoader
    layout: BatchLayout
    state: Any = None
    names: Collection[str] | None = None
    used: Callable[[], Collection[str]] | None = None
    measures: LossesAndMetrics | None = None
    row_probe: Callable[[StateBuffer, Batch], RowProbe] | None = None

    def chunks(self, buffer: StateBuffer, part: Part = WHOLE) -> Chunks:
        """Yields the chunks of one pass over the data.

        Args:
            buffer: holds the state.
            part: which batches.
        """

        def layout_of(batch: Batch) -> BatchLayout:
            if not self.layout.masked or self.row_probe is None:
                return self.layout
            masked = self.row_probe(buffer, batch).rows_are_independent(buffer.one_replica)
            return dataclasses.replace(self.layout, masked=masked)

        return self.loader.chunks(layout_of, buffer.strategy, part)


@dataclasses.dataclass(frozen=True)
class PhaseRequest:
    """A phase that is to run over the batches of a loader.

    Args:
        phase: the phase.
        loader: iterates the batches.
        fuse: how many steps go into one execution, or `"auto"`.
        most: the shortest interval in steps at whose ends executions end, so that none is longer; None without one.
        measures: as for `ExecutionPlan`.
        cut: True if executions may also end elsewhere within a pass.
        static: the numbers of steps with an executable of their own, from a checkpoint; None to choose them.
    """

    phase: CompiledPhase
    loader: BatchLoader
    fuse: int | str
    most: int | None = None
    measures: LossesAndMetrics | None = None
    cut: bool = False
    static: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        buffer: StateBuffer,
        phase: CompiledPhase,
        source: ArraySource | IterableSource,
        *,
        fuse: int | str,
        callbacks: CallbackList | None = None,
        intervals: Iterable[Every] = (),
        measures: LossesAndMetrics | None = None,
        cut: bool = False,
        static: tuple[int, ...] | None = None,
        **options: Any,
    ) -> PhaseRequest:
        """Makes the loader of a source for a phase of a module.

        Args:
            buffer: holds the state, or the module that will make it.
            phase: the phase.
            source: arrays or an iterable of batches.
            fuse: how many steps go into one execution, or `"auto"`.
            callbacks: of a training, those that may act on it within an epoch: executions end there.
            intervals: likewise, those of its evaluations.
            measures: as for `ExecutionPlan`.
            cut: True if executions may end within a pass for other reasons than these callbacks.
            static: as for `PhaseRequest`.
            **options: as for `elegy.loading.batch_loader`.
        """
        loader = batch_loader(
            source,
            processes=buffer.strategy.processes,
            view=batch_view(buffer.cls, phase),
            same_structure=level_of(buffer.cls, phase) != "core",
            **options,
        )
        most = None if callbacks is None else callbacks.longest_execution(phase, loader.batch_size, undeclared=False)[0]
        lengths = [length for every in intervals if (length := interval_steps(every, loader.batch_size)) is not None]
        if lengths and (most is None or min(lengths) < most):
            most = max(2, min(lengths))  # the results of a step that is always alone differ in the last bits
        cut = cut or (callbacks is not None and callbacks.acts_on_run)
        return cls(phase, loader, fuse, most, measures, cut, static)


def plan_phases(
    executor: Executor, buffer: StateBuffer, requests: Sequence[PhaseRequest], *, once: bool = False
) -> list[ExecutionPlan]:
    """Plans the phases of one call: each is traced with the state as the one before leaves it.

    Args:
        executor: traces and runs steps.
        buffer: holds the state, or its structure.
        requests: the phases.
        once: whether there is only one pass, so that a copy of the data on the device pays only if it is there already.

    Raises:
        ValueError: if labels do not fit the outputs.
        StepError: if a step returns the wrong thing.
    """
    buffers = [with_measures(buffer, request.measures) for request in requests]
    probes: list[RowProbe | None] = []
    plans: list[ExecutionPlan] = []
    likely: list[bool] = []
    failed: Exception | None = None
    for request in requests:
        request.loader.first_batch()  # what is wrong with the data is told as it is
    try:
        for request, own in zip(requests, buffers, strict=True):
            pays = _padding_pays(executor, own, request)
            probes.append(executor.row_probe(request.phase, own, _sample(request.loader)) if pays else None)
        # Traced first with the likely layout, so that a faulty step raises its error before the first state is made.
        likely = [probe is not None and probe.independent is not False for probe in probes]
        plans = _plan_all(executor, buffer, requests, likely, once)
    except Exception as error:  # the checks of the labels may tell better what is wrong
        failed = error
    for request, own in zip(requests, buffers, strict=True):
        checks.loader_labels(own, request.phase, request.loader, executor)
    if failed is not None:
        try:
            raise failed
        finally:
            del failed  # whose traceback holds this frame
    masked = [
        probe is not None and probe.rows_are_independent(own.one_replica)
        for probe, own in zip(probes, buffers, strict=True)
    ]
    return plans if masked == likely else _plan_all(executor, buffer, requests, masked, once)


def _plan_all(
    executor: Executor, buffer: StateBuffer, requests: Sequence[PhaseRequest], masked: Sequence[bool], once: bool
) -> list[ExecutionPlan]:
    plans: list[ExecutionPlan] = []
    traced = buffer
    for request, pads in zip(requests, masked, strict=True):
        own = with_measures(traced, request.measures)
        plans.append(plan_execution(executor, own, request, masked=pads, once=once))
        if plans[-1].state is not None and request.measures is None:
            traced = StateBuffer.planned(buffer.strategy, plans[-1].state, plans[-1].state)
    return plans


def _padding_pays(executor: Executor, buffer: StateBuffer, request: PhaseRequest) -> bool:
    """True if short batches should be padded if that leaves no trace.

    It pays if rows do not divide over the replicas, and if an iterable may bring batches of many sizes. The one short
    batch of arrays is padded in training and evaluation only: a prediction step compiles faster than the probe runs.
    """
    phase, loader, replicas = request.phase, request.loader, executor.strategy.replicas
    if loader.plan is not None:
        full, short = loader.plan.batch_size, loader.plan.last_size
        if full % replicas == short % replicas == 0 and (phase == "pred" or full == short):
            return False
    return executor.compiles(buffer.cls, phase)


def _sample(loader: BatchLoader) -> Batch:
    """A batch as the step takes it, the same in every process, to see whether rows depend on one another."""
    source = loader.source
    if isinstance(source, ArraySource) and source.on_host:  # the first rows may all be of one class
        index = np.linspace(0, source.size - 1, min(source.size, SAMPLE_ROWS)).astype(int)
        return loader.view(source.take(index))
    batch = loader.first_batch()
    return loader.view(agreed(batch) if loader.shared else batch)


def plan_execution(
    executor: Executor, buffer: StateBuffer, request: PhaseRequest, *, masked: bool, once: bool
) -> ExecutionPlan:
    """Decides how the batches of a loader run in a phase, and traces its step, so that mistakes show before it is
    compiled.

    Args:
        executor: traces and runs steps.
        buffer: has the structure to trace with.
        request: the phase.
        masked: whether short batches are padded.
        once: as for `plan_phases`.
    """
    phase, loader, fuse = request.phase, request.loader, request.fuse
    if not executor.compiles(buffer.cls, phase):
        return ExecutionPlan(loader, BatchLayout(), measures=request.measures)
    batch = structure(loader.view(loader.first_batch()))
    layout, source = BatchLayout(masked=masked, multiple=executor.strategy.replicas), loader.source
    program = executor.program(phase, buffer, *_structs(batch, layout, loader, phase))
    steps = _steps(program, loader, fuse)
    steps = steps if request.most is None else min(steps, request.most)
    resident = (
        steps > 1
        and isinstance(source, ArraySource)
        and not source.lazy
        and (not source.on_host or (source.nbytes <= resident_bytes() and (not once or loader.on_device)))
    )
    if fuse == "auto" and not resident:
        most = STACK_BYTES if phase == "train" else 2 * STACK_BYTES
        steps = min(steps, _power_of_two(most / bytes_of(batch)))
    counts = trip_counts(
        jax.default_backend(),
        steps,
        _full_batches(loader, masked=masked),
        interval=request.most,
        cut=request.cut,
        fixed=isinstance(fuse, int),
    )
    if fuse == "auto" and loader.plan is not None:
        logger.info("%s: %d steps in one execution", phase, counts.full)
    static = counts.static if request.static is None else request.static
    layout = dataclasses.replace(layout, steps=counts.full, resident=resident, static=static)
    row_probe = functools.partial(executor.row_probe, phase)
    return ExecutionPlan(loader, layout, program.state, program.names, program.used, request.measures, row_probe)


def _structs(batch: PyTree, layout: BatchLayout, loader: BatchLoader, phase: CompiledPhase) -> tuple[PyTree, PyTree]:
    """The structures of a full batch and of its mask, as a step takes them."""
    count = loader.rows_of(layout)
    masked = layout.masked and phase != "pred"
    return resized(batch, count), jax.ShapeDtypeStruct((count,), np.dtype(bool)) if masked else None


def _full_batches(loader: BatchLoader, *, masked: bool) -> int | None:
    """The batches of a pass that have the same shape; None if unknown."""
    if loader.plan is None:
        return loader.steps
    short = loader.plan.last_size < loader.plan.batch_size and not masked
    return loader.plan.steps - short


def _steps(program: Program, loader: BatchLoader, fuse: int | str) -> int:
    if loader.shared:
        return 1
    if isinstance(fuse, int):
        return fuse
    if loader.plan is None:
        return 1
    steps = min(program.steps_per_execution, 2 ** (loader.plan.steps - 1).bit_length())
    if program.phase == "pred":
        steps = min(steps, _power_of_two(OUTPUT_BYTES / bytes_of(program.outputs))) if program.rowwise else 1
    return steps


def resident_bytes() -> int:
    """Returns the size up to which in-memory data is kept on the devices of the default backend."""
    return min(RESIDENT_BYTES, RESIDENT_BYTES_ON_CPU) if jax.default_backend() == "cpu" else RESIDENT_BYTES


def _power_of_two(most: float) -> int:
    return 2 ** int(math.log2(max(most, 1.0)))


def batch_view(cls: type, phase: CompiledPhase) -> Callable[[Batch], Batch]:
    """How a step of a class takes a batch: its inputs alone to predict, and exactly what was given where users
    unpack it.

    Args:
        cls: the class of the module.
        phase: the phase.

    Example:
        >>> from elegy.module import ElegyModule
        >>> batch_view(ElegyModule, "pred")(("x", "y"))
        'x'
    """
    if phase == "pred":
        return _inputs
    return as_given if level_of(cls, phase) == "high" else _unwrapped


def _inputs(batch: Batch) -> Batch:
    return unpack(batch)[0]


def _unwrapped(batch: Batch) -> Batch:
    return batch[0] if type(batch) is tuple and len(batch) == 1 else batch


def fuse_with(callbacks: CallbackList, fuse: int | str, phase: str) -> int | str:
    """Turns fusing off if callbacks act on the run after each step.

    Args:
        callbacks: the callbacks of the call.
        fuse: what was asked for, a number of steps or `"auto"`.
        phase: `"train"` or `"test"`.
    """
    most, readers = callbacks.longest_execution(phase, undeclared=fuse == "auto")
    if most == 1 and fuse != 1:
        level = logging.INFO if fuse == "auto" else logging.WARNING
        logger.log(
            level,
            "steps_per_execution=%r: every step runs in an execution of its own, because the batch hooks of %s may "
            "read the state, or stop the run, after each step. Declare `batch_hooks_read = 'logs'` where they do not; "
            "a `PeriodicCallback` acts at an interval.",
            fuse,
            ", ".join(readers),
        )
        return 1
    return fuse
