"""A state with other losses and metrics, for an evaluation that has its own."""

from __future__ import annotations

from typing import Any

import jax

from elegy.engine.state_buffer import StateBuffer, strong
from elegy.metrics import LossesAndMetrics
from elegy.strategies.strategy import struct_of


def with_measures(buffer: StateBuffer, measures: LossesAndMetrics | None) -> StateBuffer:
    """Returns a buffer of the same state with other losses and metrics; of the same buffer for None.

    Its state is placed on first use.

    Args:
        buffer: holds the state, or its structure.
        measures: the losses and the metrics that replace those of the state; a part that is None stays.
    """
    if measures is None:
        return buffer
    measures = strong(measures)

    def changed(state: Any, measures: Any) -> Any:
        own, parts = state.losses_and_metrics, (("losses", measures.losses), ("metrics", measures.metrics))
        both = measures if own is None else own.replace(**{name: part for name, part in parts if part is not None})
        # Without the accumulators of the trainer's own test step, whose logs may have other names.
        return state.replace(losses_and_metrics=both, _logs=state._logs.replace(test=None))

    def make() -> Any:
        return buffer.strategy.place_state(strong(changed(buffer.get(), buffer.strategy.for_members(measures))))

    struct = changed(buffer.struct, jax.tree.map(struct_of, measures))
    other = StateBuffer.planned(buffer.strategy, struct, struct, make)
    other.lock = buffer.lock
    return other
