"""What is wrong with a call, said before anything is compiled."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from elegy.callbacks import Callback, CallbackList
from elegy.callers import stacklevel_of_caller
from elegy.data import ArraySource, check_finite, unpack
from elegy.data.batch import rows
from elegy.data.lazy_rows import LazyRows
from elegy.distributed import together
from elegy.engine.executor import Executor
from elegy.engine.program import CompiledPhase
from elegy.engine.state_buffer import StateBuffer
from elegy.errors import StepError
from elegy.integers import as_integer, positive_int, positive_int_or_none
from elegy.loading import BatchLoader
from elegy.losses.shapes import array_shape
from elegy.module import averaging, high_level, precision
from elegy.module.levels import level_of
from elegy.module.step_values import OWN_LOGS, STEP_VALUES
from elegy.strategies import Sharded
from elegy.types import Batch, Every, PyTree


def seed(value: Any) -> int:
    """Checks a seed.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it has more than 64 bits.
    """
    number = as_integer(value)
    if number is None:
        shown = "a key" if isinstance(value, jax.Array) else repr(value)
        raise TypeError(
            f"seed must be an integer such as 42, not {shown}: keys, and the order of the examples, are made from it."
        )
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"seed must fit into 64 bits, from -2**63 to 2**63 - 1, but it is {number}.")
    return number


def seconds(name: str, value: Any) -> float | None:
    """Checks an optional duration in seconds.

    Raises:
        ValueError: if it is not a positive number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:  # NaN too
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}.")
    return float(value)


def limit(name: str, value: Any) -> int | float | None:
    """Checks a limit: None, a number of batches, or a fraction of all batches as a float.

    Raises:
        TypeError, ValueError: if it is none of these.
    """
    if isinstance(value, float) and 0 < value <= 1:
        return value
    if isinstance(value, float):
        raise ValueError(f"{name}={value}: a fraction of the batches is above 0 and at most 1.0.")
    if value is not None and as_integer(value) is None:
        raise TypeError(f"{name} must be a positive integer, or a fraction of the batches as a float, not {value!r}.")
    return positive_int_or_none(name, value)


def validation_freq(value: Any) -> Every:
    """Checks `validation_freq`: an interval, or a number of epochs.

    Raises:
        TypeError, ValueError: if it is neither an `Every` nor a positive integer.
    """
    if isinstance(value, Every):
        return value
    if as_integer(value) is None:
        raise TypeError(
            "validation_freq must be a positive integer, a number of epochs, or an interval such as "
            f"`eg.Every(steps=500)`, not {value!r}."
        )
    return Every(epochs=positive_int("validation_freq", value))


def number_or_zero(name: str, what: str, value: Any) -> int:
    """Checks a number of which 0 means none.

    Args:
        name: the name of the argument.
        what: what is counted, for the message.
        value: the argument.

    Raises:
        ValueError: if it is not an integer of at least 0.
    """
    number = as_integer(value)
    if number is None or number < 0:
        raise ValueError(f"{name} must be a number of {what}, 0 for none, not {value!r}.")
    return number


def prefetch(value: Any) -> int:
    """Checks `prefetch`; errors as for `number_or_zero`."""
    return number_or_zero("prefetch", "batches to read ahead", value)


def hyperparameters(value: Any) -> Any:
    """Checks whose hyperparameters a restored optimizer shall have.

    Raises:
        ValueError: if it says neither.
    """
    if value not in (None, "saved", "new"):
        raise ValueError(f"hyperparameters={value!r}: it must be 'saved', 'new' or None.")
    return value


def fusing(value: Any) -> int | str:
    """Checks `steps_per_execution`.

    Raises:
        ValueError: if it is neither `"auto"` nor a positive integer.
    """
    if value == "auto":
        return "auto"
    if isinstance(value, str):
        raise ValueError(f"steps_per_execution must be 'auto' or a positive integer, not {value!r}.")
    return positive_int("steps_per_execution", value)


def step_values(callbacks: CallbackList, buffer: StateBuffer) -> tuple[str, ...]:
    """Checks the step values that callbacks declare, and returns them.

    Args:
        callbacks: the callbacks of a fit.
        buffer: holds the state, or the module that will make it.

    Raises:
        TypeError: if a callback declares something else than names.
        ValueError: if a name is unknown, or the step cannot compute its value.
    """
    for callback in callbacks:
        declared, who = callback.step_values, type(callback).__name__
        if not isinstance(declared, (tuple, list)) or not all(isinstance(name, str) for name in declared):
            raise TypeError(f"{who}.step_values must be a tuple of names, such as ('grad_norm',), not {declared!r}.")
        if unknown := [name for name in declared if name not in STEP_VALUES]:
            known = ", ".join(map(repr, STEP_VALUES))
            raise ValueError(f"{who}.step_values: there is no step value {unknown[0]!r}. There are: {known}.")
        if level_of(buffer.cls, "train") == "core" and (others := [name for name in declared if name != OWN_LOGS]):
            raise ValueError(
                f"{who} asks for the step value {others[0]!r}, but {buffer.cls.__name__}.train_step computes its own "
                "gradients: let it return the value in its logs."
            )
    return callbacks.step_values


def finite(*sources: Any) -> None:
    """Checks the data that is in arrays; that of an iterable is checked batch by batch.

    Raises:
        ValueError: if there is a NaN or an infinity.
    """
    for source in sources:
        if isinstance(source, ArraySource):
            check_finite(source.batch, columns=source.columns)


def listed(callbacks: Any) -> Iterable[Callback]:
    """Checks that the callbacks of a call come as a list.

    Raises:
        TypeError: if it is a single callback, a class, or anything else that is not a list of callbacks.
    """
    return callbacks if isinstance(callbacks, (list, tuple)) else CallbackList(() if callbacks is None else callbacks)


def initial_epoch(value: Any, epochs: int | None) -> int:
    """Checks the index of the epoch to start at.

    Raises:
        ValueError: if it is not an integer of at least 0 and below `epochs`, where that is not None.
    """
    number = as_integer(value)
    if number is None or number < 0 or (epochs is not None and number >= epochs):
        below = "" if epochs is None else f" and below epochs={epochs}"
        raise ValueError(f"initial_epoch must be an integer of at least 0{below}, not {value!r}.")
    return number


def accumulation(count: int, buffer: StateBuffer, size: int | None = None) -> None:
    """Checks that batches can be cut into microbatches.

    Args:
        count: how many microbatches a batch is cut into.
        buffer: holds the state, or the module that will make it.
        size: the rows of a full batch; the last one of an epoch may be shorter. None for a single batch.

    Raises:
        ValueError: if there are more than a full batch has rows, or the step is at the core level.
    """
    if count == 1:
        return
    if level_of(buffer.cls, "train") == "core":
        raise ValueError(
            f"accumulate={count} sums gradients over microbatches, but {buffer.cls.__name__}.train_step computes its "
            "gradients itself. Sum them there (`optax.microbatching`), or write `managed_train_step`."
        )
    if size is not None and count > size:
        raise ValueError(
            f"accumulate={count} cuts each batch into {count} microbatches, but a batch has {size} rows. Pass "
            f"accumulate={size} or less, or a batch_size of at least {count}."
        )


def can_run(buffer: StateBuffer, phase: CompiledPhase) -> None:
    """Checks that a module says how to run a phase and, for training, has an optimizer.

    Args:
        buffer: holds the state, or the module that will make it.
        phase: the phase.

    Raises:
        MissingMethodError: if it does not say how to run the phase.
        StepError: if it has no optimizer to train with, or its precision or average cannot be kept.
        RuntimeError: if a mesh is set in whose context it cannot be compiled, or `jax.disable_jit` keeps it from being
            compiled for several devices.
    """
    _check_no_mesh(buffer, phase)
    jit_enabled(buffer, phase)
    precision.check_level(buffer.cls, phase, buffer.form._precision)
    if phase == "train":
        averaging.check_level(buffer.cls, buffer.form)
    level = level_of(buffer.cls, phase)
    module = buffer.form
    if level == "high" and not high_level.runs_apply(module):
        raise high_level.missing(module, phase)
    if phase == "train" and level != "core" and module.optimizer is None:
        raise StepError(
            f"{type(module).__name__} has no optimizer, so it cannot train: pass one, "
            "`Trainer(module, ..., optimizer=optax.adam(1e-3))`, or override `train_step`."
        )


def _check_no_mesh(buffer: StateBuffer, phase: Any) -> None:
    mesh = jax.sharding.get_abstract_mesh()
    strategy = buffer.strategy
    if mesh.empty or not strategy.compiles or level_of(buffer.cls, phase) == "core":
        return
    if isinstance(strategy, Sharded) and all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        return
    raise RuntimeError(
        f"a mesh is set around this call (`jax.set_mesh`, axes {dict(mesh.shape)}), and steps under {strategy!r} "
        "cannot be compiled in its context. Leave the context, and give the mesh to the strategy where it is meant to "
        "be used: `Trainer(..., strategy=Sharded(mesh))`."
    )


def jit_enabled(buffer: StateBuffer, phase: Any) -> None:
    """Raises a RuntimeError if a phase is compiled for its devices, but `jax.disable_jit` is set."""
    strategy = buffer.strategy
    if jax.config.jax_disable_jit and strategy.compiles and level_of(buffer.cls, phase) != "core":  # type: ignore[attr-defined]
        raise RuntimeError(
            f"`jax.disable_jit()` is set around this call, but steps under {strategy!r} run on their devices only as "
            "compiled functions. To run the steps operation by operation, use one device: "
            '`Trainer(..., strategy="eager")`, or `trainer.set_strategy("eager")`.'
        )


def labels(
    buffer: StateBuffer,
    phase: Any,
    batch: Batch,
    outputs_of: Callable[[PyTree], PyTree],
    whole: Batch | None = None,
    class_weight: Mapping[int, float] | None = None,
) -> None:
    """Runs the checks of the losses and metrics on labels and weights.

    Args:
        buffer: holds the state.
        phase: `"train"` or `"test"`.
        batch: a batch of arrays.
        outputs_of: from inputs to the structure of the phase's outputs.
        whole: all of the data, to check all of its labels; None to check those of the batch.
        class_weight: weights by class, whose keys must be classes.

    Raises:
        ValueError: if labels do not fit the outputs (out of range, of another kind or shape), a weight is negative, or
            a key of the class weights is not a class.
    """
    module = buffer.form
    if level_of(buffer.cls, phase) != "high" or module.losses_and_metrics is None:
        return
    inputs, target, weight = unpack(batch)
    if target is None:
        return
    preds = outputs_of(inputs)
    if preds is not None and class_weight is not None:
        _weighed_classes(class_weight, target, preds)
    # Objects, such as distributions, may keep their number of rows beside their arrays: the batch is checked.
    count, outputs = rows(batch), jax.tree.leaves(preds, is_leaf=lambda part: not _is_container(part))
    if whole is not None and all((array_shape(leaf) or ())[:1] == (count,) for leaf in outputs):
        _, target, weight = unpack(whole)
        preds = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows(whole), *leaf.shape[1:]), leaf.dtype), preds)
    module.losses_and_metrics.check(jax.tree.map(np.asarray, target), preds, weight)


def _is_container(part: Any) -> bool:
    return part is None or isinstance(part, (Mapping, list, tuple))


def loader_labels(buffer: StateBuffer, phase: CompiledPhase, loader: BatchLoader, executor: Executor) -> None:
    """Runs the checks of the losses and metrics on labels: all that are in arrays, or those of the first batch.

    Args:
        buffer: holds the state.
        phase: the phase.
        loader: gives the batches; each process looks at those of its own share.
        executor: traces the outputs.

    Warns:
        RuntimeWarning: if all weights in arrays are 0.

    Raises:
        ValueError: if labels do not fit the outputs or a weight is negative.
        RuntimeError: if those of another process do not.
    """
    batch = loader.first_batch()

    def check() -> None:
        if phase != "pred" and rows(batch):
            outputs_of = functools.partial(executor.outputs, phase, buffer)
            whole = loader.source.batch if isinstance(loader.source, ArraySource) else None
            if whole is not None and any(isinstance(leaf, LazyRows) for leaf in jax.tree.leaves(unpack(whole)[1])):
                whole = None  # sparse or in a file: only those of the first batch are checked
            labels(buffer, phase, batch, outputs_of, whole, loader.source.class_weight)
            if whole is not None and not loader.shared and level_of(buffer.cls, phase) == "high":
                _some_weight(whole, loader.what)

    if loader.shared:
        together(check, f"the check of the labels of {loader.what}")
    else:
        check()


def _some_weight(whole: Batch, what: str) -> None:
    """Warns if no example of the data counts. A single batch without weight is usual where weights are sparse."""
    weights = jax.tree.leaves(unpack(whole)[2])
    if weights and not any(np.any(np.asarray(leaf)) for leaf in weights):
        warnings.warn(
            f"all sample weights of {what}, into which class weights are multiplied, are 0: no example counts, so "
            "losses and metrics are NaN, and training changes nothing.",
            RuntimeWarning,
            stacklevel=stacklevel_of_caller(),
        )


def _weighed_classes(class_weight: Mapping[int, float], target: PyTree, preds: PyTree) -> None:
    """The number of classes shows where class indices `(rows,)` or `(rows, 1)` meet outputs `(rows, classes)`."""
    targets, outputs = jax.tree.leaves(target), jax.tree.leaves(preds)
    if len(targets) != 1 or len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[1] == 1:
        return
    if targets[0].shape not in ((outputs[0].shape[0],), (outputs[0].shape[0], 1)):
        return
    classes = outputs[0].shape[1]
    unknown = [key for key in class_weight if not 0 <= key < classes]
    if unknown:
        raise ValueError(
            f"class_weight has the keys {unknown}, but the outputs have {classes} classes: the keys must be in "
            f"0..{classes - 1}."
        )
