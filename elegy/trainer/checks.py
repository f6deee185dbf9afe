"""What is wrong with a call, said before anything is compiled."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from elegy.callbacks import Callback, CallbackList
from elegy.data import ArraySource, check_finite, rows, unpack
from elegy.engine.state_buffer import StateBuffer
from elegy.errors import StepError
from elegy.module import high_level
from elegy.module.levels import level_of
from elegy.names import differences
from elegy.strategies import Sharded
from elegy.strategies.strategy import struct_of
from elegy.types import Batch, PyTree


def positive(name: str, value: Any, *, optional: bool = False) -> int | None:
    """Checks a whole number of at least 1.

    Raises:
        TypeError: when it is no integer.
        ValueError: when it is zero or negative.
    """
    if optional and value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a positive integer, not {value!r}.")
    if number <= 0:
        raise ValueError(f"{name} must be a positive integer, not {number}.")
    return number


def seed(value: Any) -> int:
    """Checks a seed.

    Raises:
        TypeError: when it is no integer.
        ValueError: when it has more than 64 bits.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        shown = "a key" if isinstance(value, jax.Array) else repr(value)
        raise TypeError(
            f"seed must be an integer such as 42, not {shown}: keys, and the order of the examples, are made from it."
        )
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"seed must fit into 64 bits, from -2**63 to 2**63 - 1, but it is {number}.")
    return number


def not_in_fit(trainer: Any, method: str) -> None:
    """Checks that no callback trains the trainer that is being fitted: the outer run would lose its place.

    Raises:
        RuntimeError: while `fit` runs.
    """
    if trainer._run is not None:
        raise RuntimeError(
            f"{method} was called while fit of the same trainer runs, whose steps and epochs it would take: call it "
            "before or after. Within a callback, evaluate and predict may be called, and "
            "`trainer.stop_training = True` ends the run."
        )


def seconds(name: str, value: Any) -> float | None:
    """Checks an optional duration in seconds.

    Raises:
        ValueError: when it is not a positive number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:  # NaN too
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}.")
    return float(value)


def fusing(value: Any) -> int | str:
    """Checks `steps_per_execution`.

    Raises:
        ValueError: when it is neither `"auto"` nor a positive integer.
    """
    if value == "auto":
        return "auto"
    if isinstance(value, str):
        raise ValueError(f"steps_per_execution must be 'auto' or a positive integer, not {value!r}.")
    number = positive("steps_per_execution", value)
    assert number is not None
    return number


def finite(*sources: Any) -> None:
    """Checks the data that is in arrays; that of an iterable is checked batch by batch.

    Raises:
        ValueError: when there is a NaN or an infinity.
    """
    for source in sources:
        if isinstance(source, ArraySource):
            check_finite(source.batch)


def listed(callbacks: Any) -> Iterable[Callback]:
    """Checks that the callbacks of a call come as a list.

    Raises:
        TypeError: for a single callback, a class, or anything else that is no list of callbacks.
    """
    return callbacks if isinstance(callbacks, (list, tuple)) else CallbackList(() if callbacks is None else callbacks)


def initial_epoch(value: Any, epochs: int) -> None:
    """Checks the epoch index to start at.

    Raises:
        ValueError: when it is not below `epochs`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < epochs:
        raise ValueError(f"initial_epoch must be an integer of at least 0 and below epochs={epochs}, not {value!r}.")


def can_train(buffer: StateBuffer) -> None:
    """Checks that a module has what its level of training needs.

    Args:
        buffer: holds the state, or the module that will make it.

    Raises:
        MissingMethodError: when it does not say how to train.
        StepError: when it has no optimizer.
        RuntimeError: when a mesh is set in whose context it cannot be compiled.
    """
    _check_no_mesh(buffer, "train")
    level = level_of(buffer.cls, "train")
    module = buffer.form
    if level == "core":
        return
    if level == "high" and not high_level.runs_apply(module):
        raise high_level.missing(module, "train")
    if module.optimizer is None:
        raise StepError(
            f"{type(module).__name__} has no optimizer, so it cannot train: pass one, "
            "`Trainer(module, ..., optimizer=optax.adam(1e-3))`, or override `train_step`."
        )


def can_run(buffer: StateBuffer, phase: Any) -> None:
    """Checks that a module says how to run a phase.

    Args:
        buffer: holds the state, or the module that will make it.
        phase: `"test"` or `"pred"`.

    Raises:
        MissingMethodError: when it does not.
        RuntimeError: when a mesh is set in whose context it cannot be compiled.
    """
    _check_no_mesh(buffer, phase)
    module = buffer.form
    if level_of(buffer.cls, phase) == "high" and not high_level.runs_apply(module):
        raise high_level.missing(module, phase)


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
        whole: all of the data, where it is at hand: then all of its labels are looked at.
        class_weight: weights by class, whose keys must be classes.

    Raises:
        ValueError: when labels do not fit the outputs (out of range, of another kind or shape), a weight is negative,
            or a class that is weighed is none.
    """
    module = buffer.form
    if level_of(buffer.cls, phase) != "high" or module.losses_and_metrics is None:
        return
    inputs, target, weight = unpack(batch)
    if target is None:
        return
    preds = outputs_of(inputs)
    if class_weight is not None:
        _weighed_classes(class_weight, target, preds)
    count, outputs = rows(batch), jax.tree.leaves(preds)
    if whole is not None and all(leaf.shape[:1] == (count,) for leaf in outputs):
        _, target, weight = unpack(whole)
        preds = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows(whole), *leaf.shape[1:]), leaf.dtype), preds)
    module.losses_and_metrics.check(jax.tree.map(np.asarray, target), preds, weight)


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


def same_structure(first: PyTree, batch: Batch, number: int) -> None:
    """Checks that a later batch is the same tree as the first; shapes and dtypes may differ.

    Args:
        first: the structure of the first batch.
        batch: a later batch.
        number: the index of the later batch, from 0.

    Raises:
        ValueError: if the trees differ; the message shows both.
    """
    old: object = jax.tree.structure(first)
    new: object = jax.tree.structure(batch)
    if old != new:
        raise ValueError(
            f"batch {number} has the structure {new}, but the first batch has {old}. Arrays may change their shape "
            "from batch to batch, but not the dict, list or tuple that holds them: yield every batch in the same form."
        )


def same_shapes(first: PyTree, batch: Batch, number: int) -> None:
    """Checks that a later batch differs from the first in the number of rows alone.

    Args:
        first: the structure of the first batch.
        batch: a later batch of the same tree.
        number: the index of the later batch, from 0.

    Raises:
        ValueError: if the shape of an example or a dtype differs; the message names the array.
    """

    def examples(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], struct_of(leaf).dtype), tree)

    if changes := differences(examples(first), examples(batch)):
        raise ValueError(
            f"the examples of batch {number} have another shape or dtype than those of the first batch: "
            f"{'; '.join(changes)}. Several processes join their batches into one, so only the number of rows may "
            "differ: pad the examples to one shape."
        )
