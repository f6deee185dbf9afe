"""The managed driver: what surrounds a user's step (keys, gradients, optimizer, statistics, logs).

Each function is pure and takes the strategy as an argument. The default core steps call them with the local
strategy; a Trainer's runner calls them with its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.data.batch import rows
from elegy.errors import StepError
from elegy.module import high_level
from elegy.module.finite import Verdict, judge, keep, keep_state
from elegy.module.levels import level_of
from elegy.module.logs import Entry, drain
from elegy.names import array_name, type_name
from elegy.strategies.strategy import Strategy
from elegy.types import Array, Batch, PyTree

LOCAL = Strategy()

_PHASES = ("train", "test", "pred")


def init(module: Any, key: jax.Array, batch: Batch) -> Any:
    """Makes the first state: parameters by the module's `managed_init_step`, then the optimizer's state.

    Args:
        module: an ElegyModule.
        key: a typed key; one half initialises, the other is the state's.
        batch: one batch, for its shapes and dtypes.
    """
    state_key, init_key = jax.random.split(key)
    state = check_state(module, module.managed_init_step(init_key, batch), "managed_init_step")
    if state.optimizer is not None:
        state = state.replace(optimizer=state.optimizer.init(state.get_params()))
    return state.replace(key=state_key).reset_step()


def forward_train(
    module: Any,
    batch: Batch,
    batch_idx: jax.Array | int,
    epoch_idx: jax.Array | int,
    mask: Array | None,
    strategy: Strategy,
    guard: bool = False,
) -> tuple[tuple[jax.Array, Verdict | None], Any]:
    """One step of training, up to its logs: loss, gradients, optimizer, batch statistics, keys.

    Args:
        module: the state.
        batch: the rows of this replica.
        batch_idx: index of the batch in the epoch.
        epoch_idx: index of the epoch.
        mask: `bool[rows]`, false where a row is padding; `None` where all are real.
        strategy: how replicas combine.
        guard: whether to keep the old state, but for its key, where the loss or the gradients are not finite.

    Returns:
        `((examples, verdict), module)`: the number of real examples, `float32[]`, and what the guard found, `None`
        without one; the new state with pending logs.

    Raises:
        StepError: when there is no optimizer, or the user's step returned the wrong thing.
    """
    if module.optimizer is None:
        raise StepError(
            f"{type(module).__name__} has no optimizer, so it cannot train: pass one, "
            "`Trainer(module, ..., optimizer=optax.adam(1e-3))`, or override `train_step`."
        )
    examples = count_examples(batch, mask)
    state_key, step_key = split_key(module, "train", strategy)
    share = examples / jnp.maximum(strategy.sum(examples), 1.0)
    params = module.get_params()

    def objective(params: PyTree) -> tuple[jax.Array, Any]:
        start = module.set_params(strategy.use_params(params))
        total: jax.Array | float
        if level_of(type(module), "train") == "high":
            total, state = high_level.train_objective(start, step_key, batch, mask, examples, strategy)
        else:
            out = start.managed_train_step(step_key, batch, batch_idx, epoch_idx)
            loss, state = check_train_output(module, out, "managed_train_step")
            book = state._logs
            state = state.replace(_logs=book.replace(pending=(Entry(loss, "loss", "loss"), *book.pending)))
            total = 0.0
        # A replica's scalar losses count by its share of the examples: summed over replicas that is their mean.
        added = sum((entry.value for entry in state._logs.pending if entry.kind == "loss"), 0.0)
        return total + share * added, state

    (total, state), grads = jax.value_and_grad(objective, has_aux=True)(params)
    grads = strategy.sum(grads)
    value = strategy.sum(total)
    value_fn = _value_fn(lambda params: objective(params)[0], strategy)
    new_params, optimizer = module.optimizer.update(grads, params, value=value, grad=grads, value_fn=value_fn)
    state = state.set_params(new_params).replace(optimizer=optimizer, key=state_key)
    state = mean_batch_stats(module, state, examples, strategy, "train")
    if not guard:
        return (examples, None), state
    verdict = judge(value, grads)
    return (examples, verdict), keep_state(verdict, state, module)


def _value_fn(objective: Callable[[PyTree], jax.Array], strategy: Strategy) -> Callable[[PyTree], jax.Array]:
    """The loss of the whole batch as a function of the parameters, for optimizers that search along a line.

    Its gradient is stated, because to differentiate a sum over replicas is to sum once more.
    """

    @jax.custom_vjp
    def value(params: PyTree) -> jax.Array:
        return strategy.sum(objective(params))

    def forward(params: PyTree) -> tuple[jax.Array, PyTree]:
        return strategy.sum(jax.value_and_grad(objective)(params))

    def backward(grads: PyTree, by: jax.Array) -> tuple[PyTree]:
        return (jax.tree.map(lambda leaf: (by * leaf).astype(leaf.dtype), grads),)

    value.defvjp(forward, backward)
    return value


def forward_test(
    module: Any, batch: Batch, batch_idx: jax.Array | int, mask: Array | None, strategy: Strategy
) -> tuple[jax.Array, Any]:
    """One step of evaluation, up to its logs. Arguments and result as in `forward_train`.

    Raises:
        StepError: when there is nothing to evaluate, or the user's step returned the wrong thing.
    """
    examples = count_examples(batch, mask)
    state_key, step_key = split_key(module, "test", strategy)
    if level_of(type(module), "test") == "high":
        state = high_level.test(module, step_key, batch, mask, examples)
        if not state._logs.pending:
            raise StepError(
                f"{type(module).__name__} has nothing to evaluate: it has neither a loss nor metrics and logs nothing. "
                "Pass some, `Trainer(module, metrics=elegy.metrics.Accuracy(), ...)`, or override `managed_test_step`; "
                "`predict` computes the outputs."
            )
    else:
        out = module.managed_test_step(step_key, batch, batch_idx)
        state = check_state(module, out, "managed_test_step")
    return examples, mean_batch_stats(module, state.replace(key=state_key), examples, strategy, "test")


def train(
    module: Any,
    batch: Batch,
    batch_idx: jax.Array | int,
    epoch_idx: jax.Array | int,
    mask: Array | None = None,
    strategy: Strategy = LOCAL,
) -> tuple[dict[str, jax.Array], Any]:
    """One whole step of training: `forward_train`, then the logs."""
    (examples, _), state = forward_train(module, batch, batch_idx, epoch_idx, mask, strategy)
    return drain(state, "train", examples, strategy.combine_metrics)


def guarded_train(
    module: Any, batch: Batch, batch_idx: int, epoch_idx: int, mask: Array | None, strategy: Strategy
) -> tuple[dict[str, jax.Array], Verdict, Any]:
    """As `train`, with the guard: `(logs, verdict, module)`."""
    (examples, verdict), state = forward_train(module, batch, batch_idx, epoch_idx, mask, strategy, guard=True)
    assert verdict is not None
    logs, state = drain(state, "train", examples, strategy.combine_metrics, functools.partial(keep, verdict))
    return logs, verdict, state


def test(
    module: Any,
    batch: Batch,
    batch_idx: jax.Array | int,
    mask: Array | None = None,
    strategy: Strategy = LOCAL,
) -> tuple[dict[str, jax.Array], Any]:
    """One whole step of evaluation: `forward_test`, then the logs."""
    examples, state = forward_test(module, batch, batch_idx, mask, strategy)
    return drain(state, "test", examples, strategy.combine_metrics)


def pred(module: Any, batch: Batch, batch_idx: jax.Array | int, strategy: Strategy = LOCAL) -> tuple[PyTree, Any]:
    """One step of prediction: `(outputs, module)`."""
    state_key, step_key = split_key(module, "pred", strategy)
    out = module.managed_pred_step(step_key, batch, batch_idx)
    outputs, state = check_pair(module, out, "managed_pred_step", "(outputs, module)")
    return outputs, state.replace(key=state_key, _logs=module._logs)


def split_key(module: Any, phase: str, strategy: Strategy) -> tuple[jax.Array, jax.Array]:
    """The key of the next state, and this step's key on this replica; steps of different phases draw differently.

    Raises:
        StepError: when the module has no key yet.
    """
    if module.key is None:
        raise StepError(
            f"{type(module).__name__} has no random key yet: make the first state with "
            "`state = module.init_step(jax.random.key(0), batch)`."
        )
    # The state's key counts up, like consecutive seeds, and is hashed for the step's. A hash that nobody uses is
    # removed by the compiler; a chain of splits would have to be computed by steps that draw nothing, too.
    counter = jax.random.key_data(module.key)
    state_key = jax.random.wrap_key_data(counter.at[..., -1].add(1), impl=jax.random.key_impl(module.key))
    return state_key, strategy.fold_key(jax.random.fold_in(module.key, _PHASES.index(phase)))


def count_examples(batch: Batch, mask: Array | None) -> jax.Array:
    """The number of real examples of a batch, `float32[]`."""
    if mask is None:
        return jnp.asarray(rows(batch), jnp.float32)
    return jnp.sum(mask, dtype=jnp.float32)


def mean_batch_stats(module: Any, state: Any, examples: jax.Array, strategy: Strategy, phase: Any) -> Any:
    """The batch statistics of the replicas, averaged by their examples; those that a step left alone stay.

    At the high level every other field that the call of the module changed counts as such: each replica has computed it
    from its own rows.
    """
    given = state.get_batch_stats()
    stats = _mean_moved(module.get_batch_stats(), given, examples, strategy)
    state = state if stats is given else state.set_batch_stats(stats)
    if not strategy.axis_env or level_of(type(module), phase) != "high":
        return state
    done = {id(leaf) for leaf in jax.tree.leaves((state.get_params(), state.get_batch_stats()))}
    fields = {name: getattr(state, name) for name in type(state).__dataclass_fields__ if name not in _DRIVEN}
    fields = {name: value for name, value in fields.items() if done.isdisjoint(map(id, jax.tree.leaves(value)))}
    before = {name: getattr(module, name) for name in fields}
    means = _mean_moved(before, fields, examples, strategy)
    return state if means is fields else state.replace(**means)


_DRIVEN = frozenset({"key", "params", "batch_stats", "optimizer", "losses_and_metrics", "_logs"})
"""Fields that the driver itself keeps the same on all replicas."""


def _mean_moved(before: PyTree, after: PyTree, examples: jax.Array, strategy: Strategy) -> PyTree:
    leaves, treedef = jax.tree.flatten(after)
    known = {id(leaf) for leaf in jax.tree.leaves(before)}
    moved = [i for i, leaf in enumerate(leaves) if id(leaf) not in known]
    if not moved:
        return after
    for i, leaf in zip(moved, strategy.mean([leaves[i] for i in moved], examples), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(treedef, leaves)


def check_state(module: Any, state: Any, method: str) -> Any:
    """Checks that a step returned the module's own class.

    Raises:
        StepError: naming what was returned.
    """
    if type(state) is not type(module):
        raise StepError(
            f"{type(module).__name__}.{method} must return a {type(module).__name__} (the new state), "
            f"but it returned {describe(state)}."
        )
    return state


def check_pair(module: Any, out: Any, method: str, wanted: str) -> tuple[Any, Any]:
    """Checks that a step returned a pair whose second element is the new state.

    Raises:
        StepError: naming what was returned.
    """
    if not isinstance(out, tuple) or len(out) != 2:
        raise StepError(f"{type(module).__name__}.{method} must return {wanted}, but it returned {describe(out)}.")
    return out[0], check_state(module, out[1], f"{method} (second element)")


def check_train_output(module: Any, out: Any, method: str) -> tuple[jax.Array, Any]:
    """Checks `(loss, module)`.

    Raises:
        StepError: when the loss is no scalar, or something else was returned.
    """
    loss, state = check_pair(module, out, method, "(loss, module)")
    if not isinstance(loss, (jax.Array, float, int)) or jnp.shape(loss) != ():
        raise StepError(
            f"the loss that {type(module).__name__}.{method} returned is not a scalar: {describe(loss)}. "
            "Reduce it first, for example with `jnp.mean`."
        )
    return jnp.asarray(loss), state


def check_core_logs(who: str, logs: Any) -> None:
    """Checks the logs of a step that was called as it is.

    Args:
        who: the class and the method.
        logs: what the step returned as its logs.

    Raises:
        StepError: when they are no dict of numbers and arrays, or the loss has axes.
    """
    if not hasattr(logs, "items"):
        raise StepError(
            f"{who} must return (logs, module) with a dict of logs, but the first element is {describe(logs)}."
        )
    for name, value in logs.items():
        if not isinstance(value, (jax.Array, np.ndarray, np.generic, int, float)):
            raise StepError(f"{who} logged {name!r} as {describe(value)}: a log is a number or an array.")
        if name == "loss" and jnp.shape(value) != ():
            raise StepError(
                f"the loss that {who} logged is not a scalar: {describe(value)}. Reduce it first, for example with "
                "`jnp.mean`."
            )


def describe(value: Any) -> str:
    """Says what a value is, for messages.

    Example:
        >>> describe((1, None)), describe(jnp.zeros(3))
        ('a tuple of 2 (int, None)', 'an array float32[3]')
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {array_name(value)}"
    if isinstance(value, tuple):
        inner = ", ".join("None" if v is None else type(v).__name__ for v in value)
        return f"a tuple of {len(value)} ({inner})"
    return type_name(value)
