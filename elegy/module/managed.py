"""The driver of managed steps: keys, gradients, optimizer, batch statistics and logs around a user's step.

Each function is pure and takes the strategy as an argument. The default core steps call them with the strategy for one
replica, and a Trainer's executor with its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elegy.errors import StepError
from elegy.metrics import LossesAndMetrics
from elegy.module import accumulation, freezing, high_level, precision, several_losses
from elegy.module.applied import AppliedOutputs
from elegy.module.context import LOCAL, StepContext, average_moved
from elegy.module.finite import FiniteCheck, check_finite, keep, keep_state, run_if_finite
from elegy.module.gradients import WatchedGradient, conjugate, objective_dtype, optimizer_arguments
from elegy.module.logs import drain, log_total, pending_losses
from elegy.module.step_values import OWN_LOGS, PLAIN, StepOptions, step_values
from elegy.names import array_name, type_name
from elegy.patterns import combine
from elegy.strategies.strategy import Strategy
from elegy.types import Array, Batch, PyTree


class StepExtras(NamedTuple):
    """The results of a step other than its logs.

    Args:
        examples: the number of real examples on this replica, `float32[]`.
        check: the finite check, None if the step is not guarded.
        values: the requested step values, by name.
        applied: the structure of the outputs of `apply`; None if the default step did not run, or in microbatches.
    """

    examples: jax.Array
    check: FiniteCheck | None
    values: dict[str, jax.Array]
    applied: AppliedOutputs | None


class StepOutcome(NamedTuple):
    """The results of a step for the loop.

    Args:
        logs: the values of the epoch so far, by name.
        values: the requested step values.
        check: the finite check, None if the step is not guarded.
        module: the new state.
    """

    logs: dict[str, jax.Array]
    values: dict[str, jax.Array]
    check: FiniteCheck | None
    module: Any


def init(module: Any, key: jax.Array, batch: Batch) -> Any:
    """Makes the first state: the parameters with the module's `managed_init_step`, then the optimizer's state.

    Args:
        module: an ElegyModule.
        key: a typed key, which is split into one for the initialisation and the state's.
        batch: one batch, for its shapes and dtypes.
    """
    init_key = jax.random.fold_in(key, 1)
    words = jax.random.key_data(init_key)  # one bit makes another key: a second hash would take 4 ms to load
    words = jax.lax.bitwise_xor(words, np.eye(*words.shape, dtype=words.dtype)[0] << 31)
    state = check_state(module, module.managed_init_step(init_key, batch), "managed_init_step")
    state = precision.begin(state, module._precision)
    freezing.check(state)
    if state.optimizer is not None:
        state = state.replace(optimizer=state.optimizer.init(freezing.optimizer_params(state)))
        state.optimizer.check_gradients()
    if module.averaged_params is not None:
        state = state.replace(averaged_params=module.averaged_params.begin(precision.wide_params(state)))
    return state.replace(key=jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))).reset_step()


def forward_train(
    module: Any,
    batch: Batch,
    batch_idx: jax.Array | int,
    epoch_idx: jax.Array | int,
    mask: Array | None,
    strategy: Strategy,
    options: StepOptions = PLAIN,
) -> tuple[StepExtras, Any]:
    """Runs one step of training, up to its logs: loss, gradients, optimizer, batch statistics, keys.

    Args:
        module: the state.
        batch: the rows of this replica.
        batch_idx: index of the batch in the epoch.
        epoch_idx: index of the epoch.
        mask: `bool[rows]`, False for padding; None without padding.
        strategy: how replicas combine.
        options: the options of the step; a guarded step that is not finite keeps the old state, except for its key.

    Returns:
        `(extras, module)`: the results other than logs; the new state with pending logs.

    Raises:
        StepError: if there is no optimizer, or the user's step returned the wrong thing.
    """
    if module.optimizer is None:
        raise StepError(
            f"{type(module).__name__} has no optimizer, so it cannot train: pass one, "
            "`Trainer(module, ..., optimizer=optax.adam(1e-3))`, or override `train_step`."
        )
    context = StepContext.of(batch, mask, strategy)
    state_key, step_key = split_key(module, "train", strategy)
    whole = module.get_params()
    params = freezing.trained(module, whole)
    dtype = objective_dtype(params)
    policy, scale = precision.managed_policy(module, "train"), module.dynamic_loss_scale

    @WatchedGradient
    def objective(
        params: PyTree, probe: Any, module: Any, context: StepContext, key: jax.Array, batch: Batch
    ) -> tuple[several_losses.Losses, tuple[jax.Array | None, Any]]:
        params = combine(params, module.get_params())
        start = module.set_params(strategy.use_params(params)).replace(_step=context.replace(probe=probe))
        start, batch = (start, batch) if policy is None else (policy.enter(start), policy.cast_batch(batch))
        out = start.managed_train_step(key, batch, batch_idx, epoch_idx)
        loss, state = check_train_output(module, out, "managed_train_step")
        part: several_losses.Losses
        added = sum((entry.value for entry in state._logs.pending if entry.adds), 0.0)
        if isinstance(loss, dict):
            state, own = several_losses.log_each(state, loss), several_losses.total(loss)
            part = {name: context.share * one for name, one in loss.items()}
        elif is_default_loss(out[0], state):
            part, own = state._step.part + context.share * added, None
        else:
            part, own = context.share * (loss + added), loss
        part = jax.tree.map(lambda one: one.astype(dtype), part)
        if scale is not None:
            part = jax.tree.map(lambda one: one * scale.value.astype(dtype), part)
        return part, (own, state if policy is None else policy.leave(state, module))

    differentiate, value_of = accumulation.whole_batch(
        objective, module, params, context, step_key, batch, options.accumulate
    )
    (total, (loss, state)), (grads, factor) = differentiate(params, jnp.zeros((), dtype))
    objective.check(type(module), params)
    before = freezing.optimizer_params(module), module.optimizer
    value = strategy.sum(several_losses.total(total))
    grads = precision.as_kept(conjugate(strategy.sum(grads)), before[0])
    if scale is not None:
        value, factor, grads = scale.unscale((value, factor, grads))
    if loss is not None:
        losses = reported_losses(state)
        state = state.replace(_logs=log_total(state._logs, loss, losses, strategy.sum(factor), strategy.sum))
    ran, state = state._step or context, state.replace(_step=None)
    state = mean_statistics(module, state.replace(key=state_key), ran.averaged, context.examples, strategy)
    check = check_finite(value, grads) if options.guard or scale is not None else None
    state = keep_state(check, state.set_params(whole), module)
    unscaled = value_of if scale is None else lambda params: scale.unscale(value_of(params))
    extra: dict[str, Any] = {"value": value, "grad": grads, **optimizer_arguments(unscaled, strategy)}
    if isinstance(total, dict):  # several losses are not one function that a line search could minimise
        extra = {}
    new_params, optimizer = run_if_finite(check, lambda: module.optimizer.update(grads, before[0], **extra), before)
    values = step_values(options.values, grads, before[0], new_params, optimizer)
    state = state.set_params(combine(precision.as_kept(new_params, params), whole)).replace(optimizer=optimizer)
    if module.averaged_params is not None:
        average = module.averaged_params.update(combine(new_params, precision.wide_params(module)))
        state = state.replace(averaged_params=keep(check, average, module.averaged_params))
    if scale is not None and check is not None:
        state, check = state.replace(dynamic_loss_scale=scale.adjust(check.finite)), scale.reported(check)
    return StepExtras(context.examples, check if options.guard else None, values, ran.applied), state


def reported_losses(state: Any) -> list[LossesAndMetrics]:
    """Returns the losses that the default step reported, if it ran."""
    ran = state._step is not None and state._step.loss is not None
    return pending_losses(state._logs) if ran else []


def is_default_loss(loss: Any, state: Any) -> bool:
    """True if a step returned the loss of the default step unchanged, and kept the losses that it reported."""
    return state._step is not None and loss is state._step.loss and len(reported_losses(state)) <= 1


def forward_test(
    module: Any, batch: Batch, batch_idx: jax.Array | int, mask: Array | None, strategy: Strategy
) -> tuple[StepExtras, Any]:
    """Runs one step of evaluation, up to its logs. Arguments and result as in `forward_train`.

    Raises:
        StepError: if there is nothing to evaluate, or the user's step returned the wrong thing.
    """
    context = StepContext.of(batch, mask, strategy)
    state_key, step_key = split_key(module, "test", strategy)
    policy, start = precision.managed_policy(module, "test"), module.replace(_step=context)
    start, batch = (start, batch) if policy is None else (policy.enter(start), policy.cast_batch(batch))
    state = check_state(module, start.managed_test_step(step_key, batch, batch_idx), "managed_test_step")
    state = state if policy is None else policy.leave(state, module)
    high_level.check_evaluates(module, state)
    ran, state = state._step or context, state.replace(_step=None)
    state = mean_statistics(module, state.replace(key=state_key), ran.averaged, context.examples, strategy)
    return StepExtras(context.examples, None, {}, ran.applied), state


def finish(
    module: Any, phase: Literal["train", "test"], extras: StepExtras, strategy: Strategy, options: StepOptions = PLAIN
) -> StepOutcome:
    """Drains the logs of a step.

    Args:
        module: the state after the step, with pending logs.
        phase: the phase.
        extras: the results of the step other than its logs.
        strategy: how replicas combine.
        options: the options of the step.
    """
    drained = drain(module, phase, extras.examples, strategy.combine_metrics, functools.partial(keep, extras.check))
    own = drained.own() if OWN_LOGS in options.values else {}
    return StepOutcome(drained.logs, {**own, **extras.values}, extras.check, drained.module)


def train(
    module: Any,
    batch: Batch,
    batch_idx: jax.Array | int,
    epoch_idx: jax.Array | int,
    mask: Array | None = None,
    strategy: Strategy = LOCAL,
    options: StepOptions = PLAIN,
) -> StepOutcome:
    """Runs one step of training and drains its logs. Arguments as for `forward_train`."""
    extras, state = forward_train(module, batch, batch_idx, epoch_idx, mask, strategy, options)
    return finish(state, "train", extras, strategy, options)


def test(
    module: Any,
    batch: Batch,
    batch_idx: jax.Array | int,
    mask: Array | None = None,
    strategy: Strategy = LOCAL,
) -> StepOutcome:
    """Runs one step of evaluation and drains its logs."""
    extras, state = forward_test(module, batch, batch_idx, mask, strategy)
    return finish(state, "test", extras, strategy)


def pred(module: Any, batch: Batch, batch_idx: jax.Array | int, strategy: Strategy = LOCAL) -> tuple[PyTree, Any]:
    """Runs one step of prediction; returns `(outputs, module)`."""
    state_key, step_key = split_key(module, "pred", strategy)
    policy = precision.managed_policy(module, "pred")
    start, batch = (module, batch) if policy is None else (policy.enter(module), policy.cast_inputs(batch))
    out = start.managed_pred_step(step_key, batch, batch_idx)
    outputs, state = check_pair(module, out, "managed_pred_step", "(outputs, module)")
    if policy is not None:
        outputs, state = policy.cast_outputs(outputs), policy.leave(state, module)
    return outputs, state.replace(key=state_key, _logs=module._logs)


def split_key(module: Any, phase: str, strategy: Strategy) -> tuple[jax.Array, jax.Array]:
    """Returns the key of the next state, and this step's key on this replica, which differs between phases.

    Raises:
        StepError: if the module has no key yet.
    """
    if module.key is None:
        raise StepError(
            f"{type(module).__name__} has no random key yet: make the first state with "
            "`state = module.init_step(jax.random.key(0), batch)`."
        )
    # The state's key is a counter, the step's key a hash of it. XLA removes an unused hash, but not a chain of splits.
    counter = jax.random.key_data(module.key)
    counter = jax.lax.add(counter, np.eye(*counter.shape, dtype=counter.dtype)[-1])
    state_key = jax.random.wrap_key_data(counter, impl=jax.random.key_impl(module.key))
    return state_key, strategy.fold_key(jax.random.fold_in(module.key, ("train", "test", "pred").index(phase)))


def mean_statistics(module: Any, state: Any, fields: Iterable[str], examples: jax.Array, strategy: Strategy) -> Any:
    """Averages the batch statistics that a step changed over the replicas, weighted by their examples.

    Args:
        module: the state before the step.
        state: the state after it.
        fields: the names of other fields that `apply` changed: each replica computed them from its own rows.
        examples: the number of real examples of this replica.
        strategy: how replicas combine.
    """
    given = state.get_batch_stats()
    stats = average_moved(module.get_batch_stats(), given, examples, strategy)
    state = state if stats is given else state.set_batch_stats(stats)
    if not strategy.axis_env:
        return state
    before, after = ({name: getattr(one, name) for name in fields} for one in (module, state))
    return state.replace(**average_moved(before, after, examples, strategy))


def check_state(module: Any, state: Any, method: str) -> Any:
    """Checks that a step returned the module's own class.

    Raises:
        StepError: if it returned another type; the message names it.
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
        StepError: if it returned another type; the message names it.
    """
    if not isinstance(out, tuple) or len(out) != 2:
        raise StepError(f"{type(module).__name__}.{method} must return {wanted}, but it returned {describe(out)}.")
    return out[0], check_state(module, out[1], f"{method} (second element)")


def check_train_output(module: Any, out: Any, method: str) -> tuple[several_losses.Losses, Any]:
    """Checks `(loss, module)`, where the loss may be a dict of several.

    Raises:
        StepError: if a loss is not a real scalar, or something else was returned.
    """
    loss, state = check_pair(module, out, method, "(loss, module)")
    if not isinstance(loss, dict):
        return _check_loss(module, loss, method), state
    if not loss or not all(isinstance(name, str) and name for name in loss):
        raise StepError(
            f"the dict of losses that {type(module).__name__}.{method} returned must have the names of parts of the "
            f"parameters as its keys, such as 'generator', not {list(loss)}."
        )
    return {name: _check_loss(module, one, method) for name, one in loss.items()}, state


def _check_loss(module: Any, loss: Any, method: str) -> jax.Array:
    if not isinstance(loss, (jax.Array, float, int)) or jnp.shape(loss) != ():
        raise StepError(
            f"the loss that {type(module).__name__}.{method} returned is not a scalar: {describe(loss)}. "
            "Reduce it first, for example with `jnp.mean`."
        )
    if jnp.iscomplexobj(loss):
        raise StepError(
            f"the loss that {type(module).__name__}.{method} returned is complex ({describe(loss)}), and complex "
            "numbers have no order: there is no minimum. Return a real one, for example with `jnp.real` or `jnp.abs`."
        )
    if isinstance(loss, jax.Array) and not jnp.issubdtype(loss.dtype, jnp.floating):
        raise StepError(
            f"the loss that {type(module).__name__}.{method} returned is {describe(loss)}, and only floating numbers "
            "have a gradient: nothing would be trained. Compute the loss in floating point, and log counts with "
            "`module.log(name, value)`."
        )
    return jnp.asarray(loss)


def check_core_logs(who: str, logs: Any) -> None:
    """Checks the logs of a core-level step.

    Args:
        who: the class and the method.
        logs: the logs that the step returned.

    Raises:
        StepError: if they are not a dict of numbers and arrays, or the loss is not a scalar.
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
    """Describes a value for an error message.

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
