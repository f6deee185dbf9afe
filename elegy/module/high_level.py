"""The high-level driver: the default managed steps, which use `apply`, losses and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from elegy.data.batch import unpack
from elegy.errors import MissingMethodError, StepError
from elegy.losses.reduction import safe_divide
from elegy.metrics import LossesAndMetrics
from elegy.module.applied import AppliedOutputs
from elegy.module.context import DefaultLoss, StepContext, moved_fields
from elegy.module.levels import overrides
from elegy.module.logs import Entry, losses_alone
from elegy.names import array_name
from elegy.types import Array, Batch, PyTree

_FIELD = "losses_and_metrics"


def init(module: Any, key: jax.Array, batch: Batch) -> Any:
    """Initialises a module by its `init(key, inputs)`: the default `managed_init_step`."""
    inputs = unpack(batch)[0]
    with _hint_at_labels(inputs):
        return module.init(key, inputs)


def train_step(module: Any, key: jax.Array, batch: Batch) -> tuple[jax.Array, Any]:
    """Computes the losses of a batch: the default `managed_train_step`.

    Returns:
        `(loss, module)`: as `compute_loss` returns them.

    Raises:
        StepError: if the module has no loss.
    """
    context, state, preds = _apply(module, key, batch, training=True)
    return _report_loss(module, state, context, loss_arguments(state, preds, batch, context))


def compute_loss(module: Any, preds: PyTree, target: PyTree, sample_weight: PyTree, others: dict[str, Any]) -> Any:
    """Computes the losses and metrics of outputs that a managed step computed itself.

    Args:
        module: the state, as the step has it.
        preds: the outputs.
        target: the labels, or None.
        sample_weight: the sample weights, or None.
        others: other arguments of losses and metrics, by name.

    Returns:
        `(loss, module)`: the loss of the whole batch, equal on every replica, including the terms of `add_loss`; the
        module with pending logs.

    Raises:
        StepError: if the module has no loss.
    """
    context = module._step or StepContext.of(jax.tree.leaves((target, preds))[:1])
    preds = preds if module._precision is None else module._precision.cast_outputs(preds)
    arguments = loss_arguments(module, preds, (None, target, sample_weight), context)
    del arguments["inputs"]  # a loss that reads them has to be given them
    return _report_loss(module, module, context, arguments | others)


def _report_loss(module: Any, state: Any, context: StepContext, arguments: dict[str, Any]) -> tuple[jax.Array, Any]:
    state, updates = _report(module, state, arguments)
    whole = None if context.whole is None else context.whole[len(context.reported)]
    if context.calls is not None:
        context.calls.count += 1
    pending = state._logs.pending
    added = [entry.value for entry in pending if entry.adds]
    if updates is None or updates.losses is None:
        if not added:
            raise StepError(
                f"{type(module).__name__} has no loss to train with: pass one, "
                "`Trainer(module, loss=elegy.losses.CrossEntropy(), ...)`, or override `managed_train_step`."
            )
        losses, part = None, jnp.zeros((), float)
    else:
        losses = losses_alone(updates)
        if whole is None or whole.losses is None:
            part = losses.total_loss(context.strategy.sum)
        else:
            part = losses.over(whole.losses).total_loss()
    shared = jnp.zeros((), part.dtype)
    if added:  # scalars of a replica are weighted by its fraction of the examples: their sum over replicas is the mean
        shared = context.share * sum(added)
        part = part + shared
    # The derivative of a sum over replicas is the sum of the replicas' derivatives, so the gradient of any function of
    # this loss is that of the whole batch.
    loss = context.strategy.sum(part)
    if whole is not None:
        # The value of the whole batch. The driver multiplies what a step returns by the microbatch's share, so that the
        # derivatives of all of them add up to that of the whole batch.
        share = context.strategy.sum(context.share)
        loss = whole.loss + safe_divide(loss - jax.lax.stop_gradient(loss), share)
    loss = loss + context.probe
    context = context.replace(reported=(*context.reported, DefaultLoss(losses, shared)))
    pending = tuple(entry.replace(counted=True) if entry.adds else entry for entry in pending)
    state = state.replace(_logs=state._logs.replace(pending=pending))
    return loss, _hand_back(module, state, context.replace(part=part, loss=loss))


def test_step(module: Any, key: jax.Array, batch: Batch) -> Any:
    """Evaluates losses and metrics on a batch: the default `managed_test_step`."""
    context, state, preds = _apply(module, key, batch, training=False)
    state, _ = _report(module, state, loss_arguments(state, preds, batch, context))
    return _hand_back(module, state, context)


def check_evaluates(module: Any, state: Any) -> None:
    """Checks that an evaluation step of a module that runs `apply` reported a loss, a metric or a log.

    Raises:
        StepError: if it reported none.
    """
    if runs_apply(module) and not state._logs.pending:
        raise StepError(
            f"{type(module).__name__} has nothing to evaluate: it has neither a loss nor metrics and logs nothing. "
            "Pass some, `Trainer(module, metrics=elegy.metrics.Accuracy(), ...)`, or override `managed_test_step`; "
            "`predict` computes the outputs."
        )


def pred(module: Any, key: jax.Array, inputs: PyTree) -> tuple[PyTree, Any]:
    """Applies the module to inputs, outside of training."""
    return apply(module, key, inputs, training=False)


def apply(module: Any, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Any]:
    """Calls `module.apply` in the precision of the module, and checks its result.

    Raises:
        StepError: if the result is not `(outputs, module)`.
    """
    policy = module._precision
    runs, given = (module, inputs) if policy is None else (policy.enter(module), policy.cast_inputs(inputs))
    with _hint_at_labels(inputs):
        out = runs.apply(key, given, training)
    if not isinstance(out, tuple) or len(out) != 2 or type(out[1]) is not type(module):
        what = f"a tuple ({', '.join(type(v).__name__ for v in out)})" if isinstance(out, tuple) else type(out).__name__
        raise StepError(
            f"{type(module).__name__}.apply must return (outputs, module) with the new {type(module).__name__}, "
            f"but it returned {what}."
        )
    return out if policy is None else (policy.cast_outputs(out[0]), policy.leave(out[1], module))


@contextmanager
def _hint_at_labels(inputs: PyTree) -> Iterator[None]:
    """Describes the inputs in an error of the module's call, if they are a container.

    `fit((x, y))` instead of `fit(x, y)`, or a dict instead of an array, otherwise raises an error about internals of
    the module's library.

    Raises:
        TypeError: instead of a TypeError, IndexError or AttributeError of the call. Other errors keep their type and
            get a note.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(inputs, (tuple, list, Mapping)) and inputs):
            raise
        about = _about_container(inputs)
        if isinstance(error, _TAKEN_FOR_AN_ARRAY):
            text = str(error).partition("\n")[0]
            raise TypeError(
                f"the module could not be called with these inputs: {type(error).__name__}: {text}\n{about}"
            ) from error
        error.add_note(about)
        raise


_TAKEN_FOR_AN_ARRAY = (TypeError, IndexError, AttributeError)


def _about_container(inputs: PyTree) -> str:
    kind = type(inputs).__name__
    if isinstance(inputs, Mapping):
        found = ", ".join(f"{name}: {array_name(value)}" for name, value in inputs.items())
        spread = "A dict is spread over the parameters of the module's call where all keys are names of parameters"
    else:
        found = ", ".join(map(array_name, inputs))
        spread = "A tuple is spread over the parameters of the module's call where it takes that many"
        if isinstance(inputs, list):
            spread += " (a list is not, and PyTorch's collate function makes lists of tuples: use a dict)"
    return (
        f"The inputs are a {kind} of {len(inputs)} ({found}). {spread}; everything else is passed as one argument. If "
        "labels are among the inputs, pass them as an argument of their own, `fit(x, y)`; validation data is a tuple, "
        "`(x, y)`, and so is each batch that an iterable yields."
    )


def missing(module: Any, phase: str) -> MissingMethodError:
    """Returns the error for a module that implements a phase at no level."""
    name = type(module).__name__
    high = "`init(self, key, inputs)`" if phase == "init" else "`apply(self, key, inputs, training)`"
    arguments = {
        "init": ("key, batch", "key, batch"),
        "train": ("batch, batch_idx, epoch_idx", "key, batch, batch_idx, epoch_idx"),
        "test": ("batch, batch_idx", "key, batch, batch_idx"),
        "pred": ("batch, batch_idx", "key, batch, batch_idx"),
    }[phase]
    return MissingMethodError(
        f"{name} does not say how to run the {phase} step. Write one of: {high} (high level), "
        f"`managed_{phase}_step(self, {arguments[1]})` (managed level), or "
        f"`{phase}_step(self, {arguments[0]})` (core level)."
    )


def runs_apply(module: Any) -> bool:
    """True if the class of the module overrides `apply`."""
    return overrides(type(module), "apply")


def _hand_back(module: Any, state: Any, context: StepContext) -> Any:
    """Stores the context in the new state, if a driver runs the step."""
    return state if module._step is None else state.replace(_step=context)


def _apply(module: Any, key: jax.Array, batch: Batch, *, training: bool) -> tuple[StepContext, Any, PyTree]:
    if not runs_apply(module):
        raise missing(module, "train" if training else "test")
    context = module._step or StepContext.of(batch)
    preds, state = apply(module, key, unpack(batch)[0], training)
    context = context.replace(applied=AppliedOutputs.of(preds))
    if context.strategy.axis_env:
        averaged = dict.fromkeys((*context.averaged, *moved_fields(module, state)))
        context = context.replace(averaged=tuple(averaged))
    return context, state, preds


def _report(module: Any, state: Any, arguments: dict[str, Any]) -> tuple[Any, LossesAndMetrics | None]:
    if module.losses_and_metrics is None:
        return state, None
    updates = module.losses_and_metrics.batch_updates(**arguments)
    book = state._logs
    return state.replace(_logs=book.replace(pending=(Entry(updates, _FIELD, "metric"), *book.pending))), updates


def loss_arguments(state: Any, preds: PyTree, batch: Batch, context: StepContext) -> dict[str, Any]:
    """Returns the arguments for losses and metrics, by name.

    Args:
        state: the module that `apply` returned.
        preds: the outputs that `apply` returned.
        batch: the batch.
        context: the mask and the number of real examples.
    """
    inputs, target, sample_weight = unpack(batch)
    return {
        "inputs": inputs,
        "target": target,
        "preds": preds,
        "sample_weight": sample_weight if context.mask is None else masked_weight(sample_weight, context.mask),
        "mask": context.mask,
        "parameters": state.get_params(),
        "batch_stats": state.get_batch_stats(),
        "examples": context.examples,
    }


def masked_weight(sample_weight: PyTree | None, mask: Array) -> PyTree:
    """Returns sample weights that are 0 for rows of padding.

    Args:
        sample_weight: an array of shape `(B, ...)`, or a tree of them for several outputs; None means 1.
        mask: `bool[B]`.

    Example:
        >>> masked_weight({"a": jnp.full((2, 2), 3.0)}, jnp.array([True, False]))
        {'a': Array([[3., 3.],
               [0., 0.]], dtype=float32)}
    """
    ones = mask.astype(float)
    if sample_weight is None:
        return ones

    def masked(weight: Array) -> jax.Array:
        return jnp.asarray(weight) * ones.reshape(ones.shape + (1,) * (jnp.ndim(weight) - 1))

    return jax.tree.map(masked, sample_weight)
