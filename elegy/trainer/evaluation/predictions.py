"""The prediction loop."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

from elegy.data.columns import Given
from elegy.data.sources import source_of
from elegy.loading.chunks import Chunk
from elegy.module.averaging import Weights
from elegy.module.levels import level_of
from elegy.trainer import checks
from elegy.trainer.evaluation.outputs import BatchOutputs, Outline
from elegy.trainer.evaluation.passes import plan_pass
from elegy.trainer.execution import ExecutionPlan
from elegy.trainer.listeners import Listeners
from elegy.trainer.session import Session
from elegy.types import PyTree

Predictions = Generator[BatchOutputs, None, None]


def predictions(
    session: Session,
    given: Given,
    listeners: Listeners,
    batch_size: int | None,
    steps: int | None,
    weights: Weights,
    prefetch: int,
) -> Predictions:
    """Yields the outputs of each batch, on the host, in the order of the data.

    The data and the arguments are checked now. What reads the data ends with the generator, also if it is dropped
    unused.

    Args:
        session: the session of the trainer.
        given: the data.
        listeners: the callbacks of the call.
        batch_size: as for `Trainer.predict`, like the other arguments.
        steps: the largest number of batches.
        weights: which parameters to use.
        prefetch: how many batches a thread reads ahead.
    """
    source = source_of(given, what="predict", known=session.input_tree, batch_size=batch_size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(source.reading(checks.prefetch(prefetch)))
        plan = plan_pass(session, "pred", source, listeners, batch_size, steps, weights)
        reading = stack.pop_all()
    outputs = _predictions(session, plan, listeners, weights, reading)
    weakref.finalize(outputs, reading.close).atexit = False
    return outputs


def trees(outputs: Predictions) -> Iterator[PyTree]:
    """Yields the outputs of each batch as a tree."""
    with contextlib.closing(outputs):
        for one in outputs:
            yield one.tree()


def _predictions(
    session: Session, plan: ExecutionPlan, listeners: Listeners, weights: Weights, reading: contextlib.ExitStack
) -> Predictions:
    """Yields the outputs of each batch; closes the block in which the data is read."""
    executor = session.executor
    waiting: list[tuple[tuple[list[Any], Any], Chunk]] = []
    failure: BaseException | None = None
    ended = "finished"
    try:
        listeners.emit_in_pass("on_predict_begin", "predict", plan)
        # Forked after the hooks, which may assign the state to predict with; the caller may train between batches.
        with session.buffer.shared() as fork:
            buffer = session.with_weights(fork, weights)
            failed: Exception | None = None
            try:
                for chunk in plan.chunks(buffer):
                    listeners.emit_in_pass("on_predict_batch_begin", "predict", plan, batch=chunk.first)
                    waiting.append((executor.predict(buffer, chunk), chunk))
                    for batch in range(chunk.first, chunk.first + chunk.count):
                        if batch > chunk.first:
                            listeners.emit_in_pass("on_predict_batch_begin", "predict", plan, batch=batch)
                        listeners.emit_in_pass("on_predict_batch_end", "predict", plan, batch=batch)
                    if len(waiting) > 1:  # the device works on the next chunk while this one is copied
                        yield from _outputs(session, *waiting.pop(0))
            except Exception as error:  # of the data, say: the outputs of the batches before it come first
                failed = error
            while waiting:
                yield from _outputs(session, *waiting.pop(0))
            if failed is not None:
                raise failed
    except GeneratorExit:  # the caller stopped iterating
        ended = "interrupted"
        raise
    except BaseException as error:
        failure, ended = error, "failed"
        raise
    finally:
        try:
            listeners.emit_in_pass("on_predict_end", "predict", plan, failure, ended=ended)
        finally:
            reading.close()


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
        yield BatchOutputs(one, treedef, outline, chunk.sizes[k], session.strategy.maps_members)


def outline_of(session: Session, inputs: PyTree) -> Callable[[int], Outline] | None:
    """What the module computes from a number of rows; None at the core level, whose step is never traced."""
    if level_of(session.buffer.cls, "pred") == "core":
        return None
    return functools.partial(session.executor.predicted, session.buffer, inputs)
