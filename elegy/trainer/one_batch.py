"""One batch for a look at the training step, and a block that leaves the trainer as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from elegy.data import pack, unpack
from elegy.data.batch import rows, size_of, take_rows
from elegy.data.columns import Given
from elegy.data.convert import as_arrays, as_batch, copied
from elegy.data.refused import refuse_non_arrays
from elegy.engine.executor import Executor
from elegy.engine.program import Program
from elegy.engine.state_buffer import StateBuffer
from elegy.integers import positive_int_or_none
from elegy.loading.chunks import Chunk, resized, structure
from elegy.module.levels import level_of
from elegy.trainer import checks
from elegy.trainer.one_fit import not_in_fit
from elegy.trainer.session import Session, TrainerSnapshot
from elegy.types import Batch, PyTree


def batch_of(what: str, given: Given, batch_size: Any = None) -> Batch:
    """Reads one batch of arrays, and copies them: the caller may fill the next batch into them.

    Args:
        what: the method, for messages.
        given: the arguments of the method.
        batch_size: takes the first rows only; None for all.

    Raises:
        TypeError: if a leaf is not an array of numbers, or the data has no names although some are given.
        ValueError: if there are fewer rows than `batch_size`, or none, or the arrays differ in length; if a name is
            missing.
    """
    batch = arrays_of(what, given)
    have, count = rows(batch), positive_int_or_none("batch_size", batch_size)
    if count is not None and count > have:
        raise ValueError(f"{what}(batch_size={count}): the arrays have only {have} rows.")
    return copied(batch if count is None else take_rows(batch, count))


def arrays_of(what: str, given: Given) -> Batch:
    """Reads arrays as one batch, without a copy. Arguments and errors as for `batch_of`."""
    batch = given.batch(what)
    refuse_non_arrays(unpack(batch)[0], what)
    batch = as_batch(batch)
    size_of(batch)
    return batch


def inputs_of(what: str, given: Given, *, structs: bool = False) -> PyTree:
    """Reads one batch of inputs, without a copy. Arguments and errors as for `batch_of`.

    Args:
        what: the method, for messages.
        given: the arguments of the method.
        structs: True to accept `jax.ShapeDtypeStruct` in place of arrays.
    """
    inputs = unpack(given.batch(what, only_inputs=True))[0]
    refuse_non_arrays(inputs, what)
    if not (structs and has_structs(given)):
        inputs = as_arrays(inputs)
    size_of(pack(inputs))
    return inputs


def structure_of(what: str, given: Given, batch_size: Any = None) -> Batch:
    """Reads the shapes and dtypes of one batch, of arrays or `jax.ShapeDtypeStruct`.

    Args:
        what: the method, for messages.
        given: the arguments of the method.
        batch_size: the number of rows; None for that of the arrays.
    """
    if has_structs(given):
        struct = structure(given.batch(what))
        size_of(struct)
    else:
        struct = structure(arrays_of(what, given))
    count = positive_int_or_none("batch_size", batch_size)
    return struct if count is None else resized(struct, count)


def has_structs(given: Given) -> bool:
    """True if a method was given shapes and dtypes without values, `jax.ShapeDtypeStruct`."""
    leaves = jax.tree.leaves((given.data, given.labels, given.sample_weight))
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def check_trains(session: Session, what: str, *, compiled: bool = False) -> None:
    """Checks that the module trains with a step that can be looked into.

    Args:
        session: the session.
        what: the method, for messages.
        compiled: True if the step must be compiled.

    Raises:
        StepError: if the module cannot train.
        ValueError: for a step of the core level, or of a strategy that does not compile.
    """
    session.check_can_run("train")
    if level_of(session.buffer.cls, "train") == "core":
        raise ValueError(
            f"{what} looks into the training step, but {session.buffer.cls.__name__}.train_step is of the core level, "
            "which the trainer calls as it is. Look at the function that it compiles, `jax.jit(step).lower(...)`, or "
            "write `managed_train_step`."
        )
    if compiled and not session.strategy.compiles:
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]  # options are added at run time
            why = "`jax.disable_jit()` is set around this call: leave its block first."
        else:
            why = f'strategy={session.strategy!r} does not compile it: `trainer.set_strategy("jit")` first.'
        raise ValueError(f"{what} looks at the compiled training step, but {why}")


def own_executor(session: Session, values: tuple[str, ...] = ()) -> Executor:
    """Makes an executor like that of a session, whose programs and counts are dropped with it.

    Args:
        session: the session.
        values: step values that its training steps compute.
    """
    return Executor(
        session.strategy, dataclasses.replace(session.executor.options, values=values, accumulate=session.accumulate)
    )


def training_program(session: Session, executor: Executor, buffer: StateBuffer, batch: Batch) -> Program:
    """Traces the training step for a batch, without padding.

    Args:
        session: the session.
        executor: keeps the program.
        buffer: holds the state, or its structure.
        batch: arrays or `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: if `accumulate` is larger than the batch, or the labels do not fit the outputs.
        StepError: if the step returns the wrong thing.
    """
    count = session.accumulate
    if count > rows(batch):
        raise ValueError(f"accumulate={count} cuts a batch into {count} microbatches, but it has {rows(batch)} rows.")
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(batch)):
        checks.labels(buffer, "train", batch, functools.partial(executor.outputs, "train", buffer))
    return executor.program("train", buffer, structure(batch), None)


@contextlib.contextmanager
def copied_state(session: Session, what: str, batch: Batch) -> Iterator[StateBuffer]:
    """Gives a copy of the state to run steps on; afterwards the trainer is as it was.

    Without a state, one is made as `fit` would make it, loads that wait for it included.

    Args:
        session: the session.
        what: the method, for messages.
        batch: the batch to make a state from.

    Raises:
        RuntimeError: while `fit` runs.
    """
    not_in_fit(session, what)
    snapshot = TrainerSnapshot(session)
    try:
        if session.initialized:
            yield session.buffer.fork()
        else:
            session.adopt(session.planned(batch))
            yield session.buffer  # no copy: the trainer goes back to having none
    finally:
        snapshot.restore()


def chunk_of(session: Session, batch: Batch) -> Chunk:
    """Places a batch for one step.

    Args:
        session: the session.
        batch: arrays.
    """
    return Chunk(session.strategy.place(batch, "batch"), "single", structure(batch), (rows(batch),), 0)
