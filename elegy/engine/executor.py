"""Compiles and runs the steps of a module; core-level steps run uncompiled."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np

from elegy.data.batch import rows, unpack
from elegy.engine.batch_shapes import MANY_SHAPES, BatchShapes, batch_key
from elegy.engine.program import CompiledPhase, Program, check_unchanged
from elegy.engine.reset import Reset, checked_reset
from elegy.engine.small_arrays import NEXT
from elegy.engine.state_buffer import StateBuffer
from elegy.engine.step_results import PlainStepResults, StepResults
from elegy.flat import eval_shape, outline
from elegy.garbage import collection_paused
from elegy.loading.chunks import Chunk, capacity, resized, structure
from elegy.module import ElegyModule, high_level, managed
from elegy.module.applied import AppliedOutputs
from elegy.module.levels import level_of
from elegy.module.logs import LogBook, logs_changed
from elegy.module.row_independence import RowProbe
from elegy.module.step_values import OWN_LOGS, PLAIN, StepOptions
from elegy.settings import settings
from elegy.strategies import Strategy
from elegy.transfers import explicit_transfers
from elegy.types import Batch, PyTree

IN_FLIGHT_BYTES = 64 * 2**20
"""The largest size in bytes of the batches of executions in flight; two are always allowed."""

_MANY = 32
"""The number of executions in flight below which sizes are not checked."""

_Recent = tuple[int | None, dict[tuple[int, bool], tuple[PyTree, Program]]]
_NONE: _Recent = (None, {})


class Executor:
    """Caches the compiled steps of one strategy, and runs them on states.

    Args:
        strategy: how steps run.
        options: additions to a training step.
    """

    def __init__(self, strategy: Strategy, options: StepOptions = PLAIN):
        self.strategy, self.options = strategy, options
        self.traces: dict[str, int] = {"train": 0, "test": 0, "pred": 0}
        self._programs: dict[Any, Program] = {}
        self._recent: dict[str, _Recent] = {}
        self._resets: dict[Any, Reset] = {}
        self._last_reset: tuple[int | None, Reset | None] = (None, None)
        self._last_key: tuple[int | None, Any] = (None, None)
        self._probes: dict[Any, RowProbe] = {}
        self._outputs: dict[Any, PyTree] = {}
        self._in_flight: deque[Any] = deque()
        self.shapes = BatchShapes()
        self._logged: dict[str, list[str]] = {}
        self.ran: dict[str, Program] = {}  # the last program that ran, by phase

    def compiles(self, cls: type, phase: CompiledPhase) -> bool:
        """True if a phase of a module's class runs compiled."""
        return self.strategy.compiles and level_of(cls, phase) != "core"

    @contextlib.contextmanager
    def asked_for(self, values: tuple[str, ...]) -> Iterator[None]:
        """While the block runs, training steps compute step values.

        Args:
            values: names of `elegy.module.step_values.STEP_VALUES`.
        """
        before = self.options
        self._use(dataclasses.replace(before, values=values))
        try:
            yield
        finally:
            self._use(before)

    def accumulate(self, count: int) -> None:
        """Cuts the batches of training steps into `count` microbatches from now on."""
        self._use(dataclasses.replace(self.options, accumulate=count))

    def _use(self, options: StepOptions) -> None:
        self.options = options
        self._recent.pop("train", None)

    # the state

    def reset(self, buffer: StateBuffer, phase: CompiledPhase) -> None:
        """Runs the module's `reset_step` at the beginning of an epoch."""
        self._logged.pop(phase, None)
        self._recent.pop(phase, None)  # the first step of an epoch checks the names of its logs
        if not self.compiles(buffer.cls, phase):
            buffer.set(checked_reset(buffer.get()))
            return
        buffer.materialise()
        if buffer.fresh and buffer.cls.reset_step is ElegyModule.reset_step:
            return  # its making ended with a reset, and a second one has the same values
        reset = self._reset_of(buffer)
        with buffer.lock:
            buffer.put(reset.changed, reset.kernel(buffer.pick(reset.changed), buffer.pick(reset.constant))[1])

    def _reset_of(self, buffer: StateBuffer) -> Reset:
        version, recent = self._last_reset
        if version == buffer.version and recent is not None:  # the usual case
            return recent
        key = self._state_key(buffer)
        if key not in self._resets:
            self._resets[key] = Reset.of(buffer.struct, self.strategy)
        self._last_reset = buffer.version, self._resets[key]
        return self._resets[key]

    # programs

    def row_probe(self, phase: CompiledPhase, buffer: StateBuffer, batch: Batch) -> RowProbe:
        """Returns the probe that decides if short batches of a phase may be padded; one for each shape of an example.

        Args:
            phase: the phase.
            buffer: contains the state, or its structure.
            batch: a batch for the step, the same in every process.
        """
        key = (phase, batch_key(buffer.struct.replace(_logs=LogBook())), batch_key(resized(structure(batch), 0)))
        if key not in self._probes:
            with self.shapes.noting_inputs(phase, batch if phase == "pred" else unpack(batch)[0]):
                self._probes[key] = RowProbe(buffer.struct, phase, batch, self.strategy, list(self._probes.values()))
        return self._probes[key]

    def outputs(self, phase: Literal["train", "test"], buffer: StateBuffer, inputs: PyTree) -> PyTree:
        """Returns the structure of the outputs of a phase's high-level step, from its trace if there is one.

        Returns None if the outputs are not a tree of arrays, or their class cannot contain `jax.ShapeDtypeStruct`.
        Losses and metrics of such outputs cannot be checked before the step is traced.
        """
        key = self._outputs_key(phase, buffer, inputs)
        if key not in self._outputs:

            def apply(module: Any, given: PyTree) -> AppliedOutputs:
                return AppliedOutputs.of(high_level.apply(module, jax.random.key(0), given, phase == "train")[0])

            with self.shapes.noting_inputs(phase, inputs):
                self._outputs[key] = eval_shape(apply, buffer.struct, inputs).tree()
        return self._outputs[key]

    def _outputs_key(self, phase: CompiledPhase, buffer: StateBuffer, inputs: PyTree) -> Any:
        return phase, batch_key(buffer.struct.replace(_logs=LogBook())), batch_key(inputs), settings()

    def predicted(self, buffer: StateBuffer, inputs: PyTree, rows: int) -> tuple[list[Any], Any]:
        """Returns the structure of the prediction step's outputs, for inputs with this many rows.

        Returns:
            `(structs, treedef)`: a `jax.ShapeDtypeStruct` for each leaf, and the tree definition.
        """
        inputs = resized(inputs, rows)
        key = ("pred", batch_key(buffer.struct), batch_key(inputs), settings())
        if key not in self._outputs:
            with self.shapes.noting_inputs("pred", inputs):
                self._outputs[key] = outline(
                    lambda module, given: managed.pred(module, given, 0)[0], buffer.struct, inputs
                )
        return self._outputs[key]

    def program(self, phase: CompiledPhase, buffer: StateBuffer, batch: PyTree, mask: PyTree | None) -> Program:
        """Returns the program for the state's and the batch's structure; traces it on first use."""
        form = (batch_key(batch), mask is not None, self.options if phase == "train" else None, settings())
        key = (phase, self._state_key(buffer), form)
        program = self._programs.get(key)
        if program is None:
            strategy = self.strategy
            if rows(batch) % strategy.replicas:
                strategy = strategy.replicated
            inputs = batch if phase == "pred" else unpack(batch)[0]
            with self.shapes.noting_inputs(phase, inputs), self.shapes.noting_batch(phase, batch):
                program = Program(phase, strategy, buffer.struct, batch, mask, self.options)
            if program.applied is not None and strategy.replicas == 1 and not strategy.maps_members:
                self._outputs.setdefault(self._outputs_key(phase, buffer, inputs), program.applied.tree())
            self.traces[phase] += 1
            self.shapes.traced(phase, batch)
            if phase == "pred" and not (program.rowwise and self._rows_follow(buffer, batch, strategy.replicas)):
                # Outputs without one row for each example must be computed from the whole batch.
                program = Program(phase, strategy.replicated, buffer.struct, batch, mask, self.options)
            self._programs[key] = program
            self._programs[(phase, batch_key(program.state), form)] = program
        return program

    def _state_key(self, buffer: StateBuffer) -> Any:
        """The key of a state's structure; every epoch of a run has the same one."""
        version, key = self._last_key  # another thread may replace it
        if version != buffer.version:
            version, key = self._last_key = buffer.version, batch_key(buffer.struct)
        return key

    def _rows_follow(self, buffer: StateBuffer, inputs: PyTree, replicas: int) -> bool:
        """True if every output has a row for each row of a replica's inputs, whatever their number is.

        With one row for each replica, an output of shape (1,) may be a parameter that all examples share.
        """
        if replicas == 1:
            return True
        count = rows(inputs) // replicas + 1
        try:
            structs, _ = self.predicted(buffer, inputs, count)
        except Exception:  # the user's module works with the rows of this batch only
            return True
        return all(leaf.shape[:1] == (count,) for leaf in structs)

    def _same(self, phase: CompiledPhase, buffer: StateBuffer, chunk: Chunk) -> Program | None:
        """Looks up the program of an earlier chunk by the identity of its structure, fast enough for every step."""
        if jax.config.jax_disable_jit and chunk.kind == "single":  # type: ignore[attr-defined]
            return None
        version, recent = self._recent.get(phase, _NONE)
        found = recent.get((id(chunk.batch), chunk.mask is None)) if version == buffer.version else None
        return found[1] if found is not None and found[0] is chunk.batch else None

    def _remember(self, phase: CompiledPhase, buffer: StateBuffer, chunk: Chunk, program: Program) -> None:
        version, recent = self._recent.get(phase, _NONE)
        if version != buffer.version or len(recent) > MANY_SHAPES:
            recent = {}
        recent[id(chunk.batch), chunk.mask is None] = chunk.batch, program
        self._recent[phase] = buffer.version, recent

    def _accumulate(self, program: Program, buffer: StateBuffer) -> None:
        """Adds the log accumulators that tracing the first step of a phase has found."""
        if getattr(buffer.struct._logs, program.phase) is not None:
            return
        fresh = {name: log.reset() for name, log in getattr(program.state._logs, program.phase).items()}
        fresh = self.strategy.for_members(fresh)
        with buffer.lock:
            buffer.extend(
                lambda state: self.strategy.place_state(
                    state.replace(_logs=state._logs.replace(**{program.phase: fresh}))
                )
            )

    # steps

    def run(
        self, phase: Literal["train", "test"], buffer: StateBuffer, chunk: Chunk, epoch: int
    ) -> StepResults | PlainStepResults:
        """Runs the steps of a chunk, stores the new state in the buffer, and returns the logs."""
        program = self._same(phase, buffer, chunk)
        if program is None:
            if chunk.kind == "single" and not self.compiles(buffer.cls, phase):
                with self.shapes.noting_batch(phase, chunk.batch):
                    return self._run_plain(phase, buffer, chunk, epoch)
            program = self.program(phase, buffer, chunk.batch, _one_mask(chunk))
            self._accumulate(program, buffer)
            self._check_logs(phase, [name for name, _, _ in program.log_names])
            self._remember(phase, buffer, chunk, program)
            with collection_paused():  # the executable may have to be made
                out = self._execute(program, buffer, chunk, epoch)
        else:
            out = self._execute(program, buffer, chunk, epoch)
        return StepResults(program, out, None if chunk.kind == "single" else chunk.count)

    def predict(self, buffer: StateBuffer, chunk: Chunk) -> tuple[list[Any], Any]:
        """Runs the prediction steps of a chunk.

        Returns:
            `(leaves, treedef)`: the leaves of the outputs, including padding, stacked for several steps; and the tree
            definition of the outputs for the number of rows with which the step was traced.
        """
        program = self._same("pred", buffer, chunk)
        if program is None and (chunk.kind != "single" or self.compiles(buffer.cls, "pred")):
            program = self.program("pred", buffer, chunk.batch, None)
            self._remember("pred", buffer, chunk, program)
        if program is not None:
            return self._execute(program, buffer, chunk, 0), program.output_tree
        state = buffer.get()
        with self.shapes.noting_batch("pred", chunk.batch):
            out = state.pred_step(chunk.data, chunk.first)
        outputs, state = managed.check_pair(state, out, "pred_step", "(outputs, module)")
        buffer.set(state)
        return jax.tree.flatten(outputs)

    def _execute(self, program: Program, buffer: StateBuffer, chunk: Chunk, epoch: int) -> Any:
        with buffer.lock:  # the data of a batch to come may read the state meanwhile, in the thread that reads ahead
            out, size = self._donate_and_put(program, buffer, chunk, epoch)
        if program.phase != "pred":  # outputs of predictions may be large, and are read soon
            self._wait_for_room(out, size)
        return out

    def _donate_and_put(self, program: Program, buffer: StateBuffer, chunk: Chunk, epoch: int) -> tuple[Any, int]:
        """Returns the results of an execution, and the size of its batches in bytes."""
        self.ran[program.phase] = program
        constant = buffer.pick(program.constant)
        first, count, single = chunk.first, chunk.count, chunk.kind == "single"
        packed = program.packed if single else None
        if program.donates:
            changed = buffer.take(program.changed, program.donated, packed)
        else:
            changed = buffer.pick(program.changed)
        donated = changed[: program.donated]
        sums = changed[program.donated :] if packed is None else changed[-1]
        mask = chunk.mask if program.phase != "pred" else None
        if mask is not None:
            mask = program.small.mask(mask, "batch" if single else "chunk")
        control = program.small.control(epoch, first, count)
        if single:
            kernel = program.single()
            with explicit_transfers():
                out, changed = kernel(donated, sums, constant, chunk.data, mask, control)
            size = program.batch_bytes
        else:
            room, resident = capacity(chunk), chunk.kind == "resident"
            kernel = program.fused(room, resident=resident, count=chunk.count if chunk.static else None)
            with explicit_transfers():
                out, changed = kernel(donated, sums, constant, chunk.data, chunk.index, mask, control)
            size = 0 if resident else room * program.batch_bytes
        if program.returns_control:
            program.small.returned(out.pop(NEXT), epoch, first + count, count)
        buffer.put(program.changed, changed, packed)
        return out, size

    def _check_logs(self, phase: str, names: list[str]) -> None:
        """Checks that a step logs the same names as the earlier steps of its epoch.

        Raises:
            StepError: if the names differ.
        """
        known = self._logged.setdefault(phase, names)
        if known is not names and known != names and set(known) != set(names):
            raise logs_changed(phase, known, names)

    def _wait_for_room(self, out: Any, size: int) -> None:
        """Waits for the oldest execution if too many are in flight, or their batches are too large."""
        most = self.strategy.max_in_flight
        if size * _MANY > IN_FLIGHT_BYTES:
            most = min(most or _MANY, max(2, IN_FLIGHT_BYTES // size))
        if most is not None:
            self._in_flight.append(out)
            while len(self._in_flight) > most:
                # Reading the results of a failed execution raises its error, so it is not raised here.
                with contextlib.suppress(Exception):
                    jax.block_until_ready(self._in_flight.popleft())

    def _run_plain(
        self, phase: Literal["train", "test"], buffer: StateBuffer, chunk: Chunk, epoch: int
    ) -> PlainStepResults:
        state = buffer.get()
        name = f"{phase}_step"
        check, values = None, None
        if level_of(type(state), phase) == "core":
            args = (chunk.data, chunk.first, epoch) if phase == "train" else (chunk.data, chunk.first)
            logs, after = managed.check_pair(state, getattr(state, name)(*args), name, "(logs, module)")
            managed.check_core_logs(f"{type(state).__name__}.{name}", logs)
            logs = dict(sorted(logs.items(), key=lambda log: log[0] != "loss"))  # jit sorts names: "accuracy", "loss"
            values = logs if OWN_LOGS in self.options.values else None
            who = f"{type(state).__name__}.{name}"
        else:
            if phase == "train":
                out = managed.train(state, chunk.data, chunk.first, epoch, chunk.mask, self.strategy, self.options)
            else:
                out = managed.test(state, chunk.data, chunk.first, chunk.mask, self.strategy)
            logs, check, values, after = out.logs, out.check, out.values, out.module
            who = f"{type(state).__name__}'s {phase} step"
        # The first step of a phase adds its log accumulators, also one at the core level that calls the default step.
        same = state.replace(_logs=after._logs) if getattr(state._logs, phase) is None else state
        check_unchanged(same, after, who)
        self._check_logs(phase, list(logs))
        buffer.set(after)
        return PlainStepResults(logs, check, values)


def _one_mask(chunk: Chunk) -> jax.ShapeDtypeStruct | None:
    return None if chunk.mask is None else jax.ShapeDtypeStruct(chunk.mask.shape[-1:], np.dtype(bool))
