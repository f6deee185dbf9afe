"""Optimizer: Optax, with its state beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.optimizer_groups import as_optimizer

PARAMS = {"w": jnp.arange(4.0), "b": {"c": jnp.ones((2, 3), jnp.bfloat16)}}


def grads_of(params, step):
    return jax.tree.map(lambda p: (p.astype(jnp.float32) * 0.1 + step).astype(p.dtype), params)


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1),
        optax.adam(1e-2),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 10))),
        optax.multi_transform({"a": optax.sgd(0.1), "b": optax.adam(0.1)}, {"w": "a", "b": "b"}),
    ],
    ids=["sgd", "adam", "chain", "multi"],
)
def test_updates_are_those_of_optax(tx):
    optimizer, params = eg.Optimizer(tx).init(PARAMS), PARAMS
    expected, state = PARAMS, tx.init(PARAMS)
    for step in range(3):
        grads = grads_of(expected, step)
        params, optimizer = optimizer.update(grads, params)
        updates, state = tx.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    for a, b in zip(jax.tree.leaves((params, optimizer.state)), jax.tree.leaves((expected, state)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_it_is_a_pytree_that_jit_takes_and_returns_without_tracing_again():
    traces = []

    @jax.jit
    def step(optimizer, params):
        traces.append(1)
        params, optimizer = optimizer.update(grads_of(params, 0), params)
        return optimizer, params

    optimizer, params = eg.Optimizer(optax.adam(0.1)).init(PARAMS), PARAMS
    for _ in range(3):
        optimizer, params = step(optimizer, params)
    assert traces == [1]
    assert optax.tree_utils.tree_get(optimizer.state, "count") == 3


def test_the_original_never_changes():
    before = eg.Optimizer(optax.adam(0.1))
    initialised = before.init(PARAMS)
    initialised.update(grads_of(PARAMS, 0), PARAMS)
    assert before.state is None
    assert optax.tree_utils.tree_get(initialised.state, "count") == 0


def test_extra_arguments_reach_those_that_take_them_only():
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    optimizer = eg.Optimizer(tx).init(PARAMS)
    _, optimizer = optimizer.update(grads_of(PARAMS, 0), PARAMS, value=jnp.float32(2.0))
    assert float(optax.tree_utils.tree_get(optimizer.state, "best_value")) == 2.0
    plain = eg.Optimizer(optax.sgd(0.1)).init(PARAMS)
    plain.update(grads_of(PARAMS, 0), PARAMS, value=jnp.float32(2.0))


@pytest.mark.parametrize("opaque", [False, True])
def test_an_optimizer_that_takes_some_extra_arguments_gets_those_alone(opaque):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    tx = optax.contrib.sam(optax.sgd(0.1), adversary, sync_period=2, opaque_mode=opaque)
    optimizer, params = eg.Optimizer(tx).init(PARAMS["w"]), PARAMS["w"]
    state, expected = tx.init(params), params
    wanted = {"grad_fn": lambda params, step: params**2} if opaque else {}
    for step in range(4):
        params, optimizer = optimizer.update(grads_of(params, step), params, value=jnp.float32(1), **wanted)
        updates, state = tx.update(grads_of(expected, step), state, expected, **wanted)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_array_equal(params, expected)


def test_updating_before_init_says_so():
    with pytest.raises(RuntimeError, match=r"no state yet: call `optimizer = optimizer.init\(params\)`"):
        eg.Optimizer(optax.sgd(0.1)).update(PARAMS, PARAMS)


@pytest.mark.parametrize("wrong", ["adam", 1e-3, optax.adam, lambda g: g, None])
def test_what_is_no_optimizer_is_named(wrong):
    with pytest.raises(TypeError, match=r"optax.GradientTransformation such as optax.adam\(1e-3\), not"):
        as_optimizer(wrong)


def test_as_optimizer_keeps_an_optimizer():
    optimizer = eg.Optimizer(optax.sgd(0.1))
    assert as_optimizer(optimizer) is optimizer
    tx = optax.sgd(0.1)
    assert as_optimizer(tx).tx is tx
