"""The prediction loop."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

from elegy.engine.state_buffer import StateBuffer
from elegy.loading.chunks import Chunk
from elegy.module.averaging import Weights
from elegy.module.levels import level_of
from elegy.trainer.execution import ExecutionPlan
from elegy.trainer.listeners import Listeners
from elegy.trainer.outputs import BatchOutputs, Outline, join
from elegy.trainer.session import Session
from elegy.types import PyTree


def predict_all(session: Session, plan: ExecutionPlan, listeners: Listeners, weights: Weights) -> PyTree:
    """Predicts all of the data and joins the outputs of the batches."""
    return join(list(_predictions(session, plan, listeners, weights)))


def predict(session: Session, plan: ExecutionPlan, listeners: Listeners, weights: Weights) -> Iterator[PyTree]:
    """Yields the outputs of each batch, on the host, in the order of the data."""
    with contextlib.closing(_predictions(session, plan, listeners, weights)) as predictions:
        for outputs in predictions:
            yield outputs.tree()


def _predictions(
    session: Session, plan: ExecutionPlan, listeners: Listeners, weights: Weights
) -> Generator[BatchOutputs, None, None]:
    """Yields the outputs of each batch."""
    executor = session.executor
    buffer: StateBuffer | None = None
    waiting: list[tuple[tuple[list[Any], Any], Chunk]] = []
    failure: BaseException | None = None
    try:
        listeners.emit_in_pass("on_predict_begin", "predict", plan)
        # Forked after the hooks, which may assign the state to predict with; the caller may train between batches.
        buffer = session.with_weights(session.buffer.shared_fork(), weights)
        for chunk in plan.chunks(buffer):
            listeners.emit_in_pass("on_predict_batch_begin", "predict", plan, batch=chunk.first)
            waiting.append((executor.predict(buffer, chunk), chunk))
            for batch in range(chunk.first, chunk.first + chunk.count):
                if batch > chunk.first:
                    listeners.emit_in_pass("on_predict_batch_begin", "predict", plan, batch=batch)
                listeners.emit_in_pass("on_predict_batch_end", "predict", plan, batch=batch)
            if len(waiting) > 1:  # the device works on the next chunk while this one is copied
                yield from _outputs(session, *waiting.pop(0))
        while waiting:
            yield from _outputs(session, *waiting.pop(0))
    except GeneratorExit:  # the caller stopped iterating
        raise
    except BaseException as error:
        failure = error
        raise
    finally:
        if buffer is not None:
            buffer.release()
        listeners.emit_in_pass("on_predict_end", "predict", plan, failure)


def _outputs(session: Session, predicted: tuple[list[Any], Any], chunk: Chunk) -> Iterator[BatchOutputs]:
    """The outputs of each batch of a chunk, without padding."""
    leaves, treedef = predicted
    host = session.strategy.collect_outputs(leaves)
    single = chunk.kind == "single"
    masks = None if chunk.mask is None else chunk.mask[None] if single else chunk.mask
    outline = outline_of(session, chunk.batch)
    for k in range(chunk.count):
        one = host if single else [leaf[k] for leaf in host]
        if masks is not None and not masks[k].all():
            one = [leaf[masks[k]] for leaf in one]
        yield BatchOutputs(one, treedef, outline, chunk.sizes[k])


def outline_of(session: Session, inputs: PyTree) -> Callable[[int], Outline] | None:
    """What the module computes from a number of rows; None at the core level, whose step is never traced."""
    if level_of(session.buffer.cls, "pred") == "core":
        return None
    return functools.partial(session.executor.predicted, session.buffer, inputs)
