"""The state that a call begins with: made from its first batch, or named for the outputs that it shows."""

from __future__ import annotations

from typing import Any

from elegy.data import unpack
from elegy.engine.executor import Executor
from elegy.engine.initial_state import initial_state
from elegy.engine.state_buffer import StateBuffer
from elegy.loading import multihost
from elegy.module import high_level, recipe
from elegy.module.levels import level_of
from elegy.types import Batch


def first_state(executor: Executor, module: Any, seed: int, batch: Batch) -> StateBuffer:
    """Plans a first state, the same in every process.

    Args:
        executor: traces the init.
        module: the module without a state.
        seed: where the parameters come from.
        batch: one batch, for its shapes and dtypes.
    """
    if executor.strategy.processes > 1:
        batch = multihost.agreed(batch)
    state = initial_state(executor.strategy, module, executor.strategy.first_key(seed), batch)
    if level_of(type(module), "init") != "core":  # whose batches may be anything
        executor.shapes.initialised(unpack(batch)[0])
    return state


def planned_state(executor: Executor, buffer: StateBuffer, initialized: bool, seed: int, batch: Batch) -> StateBuffer:
    """The state for batches like this one; one that is made when it is needed where there is none yet.

    Losses and metrics that were given in dicts get the names of the outputs with the same keys.

    Args:
        executor: traces the init and the outputs.
        buffer: holds the state, or the module that will make it.
        initialized: whether there is a state.
        seed: where the parameters come from.
        batch: the first batch.
    """
    planned = buffer if initialized else first_state(executor, buffer.get(), seed, batch)
    named = planned.form.losses_and_metrics
    if named is None or not named.has_keys or not high_level.runs_apply(planned.form):
        return planned
    preds = executor.outputs("test", planned, unpack(batch)[0])
    if preds is None or named.for_outputs(preds).names == named.names:
        return planned

    def renamed(state: Any) -> Any:
        return recipe.for_outputs(state, preds)

    if not initialized:
        return first_state(executor, renamed(buffer.get()), seed, batch)
    other = buffer.fork()
    other.set(renamed(other.get()))
    return other
