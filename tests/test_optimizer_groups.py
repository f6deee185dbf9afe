"""Groups of parameters with optimizers of their own: the updates of `optax.partition`, and errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elegy.optimizer_groups import as_optimizer

PARAMS = {
    "backbone": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)},
    "head": {"w": jnp.full((3, 2), 0.5), "b": jnp.zeros(2)},
}


def grads_of(params, step):
    return jax.tree.map(lambda p: p * 0.1 + jnp.float32(step), params)


def steps(update, params, count=3):
    for step in range(count):
        params = update(grads_of(params, step), params)
    return params


def test_updates_are_those_of_a_partition():
    """The first match counts: both patterns match the bias of the head."""
    groups = {"head/*": optax.adam(1e-1), "*/b": optax.sgd(0.5), "*": optax.adamw(1e-2, weight_decay=0.1)}
    optimizer = as_optimizer(groups).init(PARAMS)
    labels = {"backbone": {"w": "*", "b": "*/b"}, "head": {"w": "head/*", "b": "head/*"}}
    tx = optax.partition(groups, labels)
    state = tx.init(PARAMS)

    def ours(grads, params):
        nonlocal optimizer
        params, optimizer = optimizer.update(grads, params)
        return params

    def theirs(grads, params):
        nonlocal state
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates)

    jax.tree.map(np.testing.assert_array_equal, steps(ours, PARAMS), steps(theirs, PARAMS))
    assert jax.tree.structure(optimizer.state) == jax.tree.structure(state)


def test_each_group_gets_the_extra_arguments_that_its_transformation_accepts():
    """Polyak needs `value`, SAM does not accept it, and Momo takes `value` and the gradients of its own group."""

    def sam():
        return optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)))

    groups = {"head/w": sam(), "head/*": optax.contrib.momo(0.1), "*": optax.polyak_sgd(0.3)}
    optimizer, params = as_optimizer(groups).init(PARAMS), PARAMS
    parts = [{"w": PARAMS["head"]["w"]}, {"b": PARAMS["head"]["b"]}, PARAMS["backbone"]]
    states = [tx.init(part) for tx, part in zip(groups.values(), parts, strict=True)]
    for step in range(4):
        grads, value = grads_of(params, step), jnp.float32(3 - step / 2)
        params, optimizer = optimizer.update(grads, params, value=value, grad=grads)
        own = [{"w": grads["head"]["w"]}, {"b": grads["head"]["b"]}, grads["backbone"]]
        for i, (tx, extra) in enumerate(zip(groups.values(), ({}, {"value": value}, {"value": value}), strict=True)):
            updates, states[i] = tx.update(own[i], states[i], parts[i], **extra)
            parts[i] = optax.apply_updates(parts[i], updates)
        jax.tree.map(np.testing.assert_array_equal, params, {"backbone": parts[2], "head": parts[0] | parts[1]})


@pytest.mark.parametrize("pattern", ["head/*", "*"])
def test_lookahead_in_a_group_is_refused(pattern):
    groups = {pattern: optax.lookahead(optax.sgd(0.1), 2, 0.5), **({} if pattern == "*" else {"*": optax.sgd(0.1)})}

    def step():
        return as_optimizer(groups).init(PARAMS).update(PARAMS, PARAMS)

    with pytest.raises(TypeError, match=r"the optimizer contains optax.lookahead.*cannot contain it"):
        step()


SGD = optax.sgd(0.1)
MISFITS = {
    "nothing": ({"neck/*": SGD, "*": SGD}, "'neck/\\*' matches no parameter. There are 'backbone/b', 'backbone/w'"),
    "a subtree": ({"head": SGD, "*": SGD}, "write 'head/\\*' for all parameters below 'head'"),
    "shadowed": ({"*": SGD, "head/*": SGD}, "'head/\\*' is never used: 'head/b' and 'head/w' match '\\*' before it"),
    "one shadowed": ({"head/*": SGD, "*": SGD, "he*b": SGD}, "'head/b' matches 'head/\\*' before it"),
    "twice shadowed": ({"*/b": SGD, "*/w": SGD, "head/*": SGD}, "match '\\*/b' and '\\*/w' before it"),
    "uncovered": ({"head/*": SGD}, "no pattern matches 'backbone/b' and 'backbone/w'; the pattern '\\*'"),
}


@pytest.mark.parametrize(("groups", "message"), MISFITS.values(), ids=MISFITS)
def test_patterns_that_do_not_fit_are_listed(groups, message):
    with pytest.raises(ValueError, match=message):
        as_optimizer(groups).init(PARAMS)


@pytest.mark.parametrize(
    ("groups", "kind", "message"),
    [
        ({}, ValueError, "the dict of optimizers is empty"),
        ({0: SGD}, TypeError, "must be patterns of parameter paths, such as 'head/\\*', not 0"),
        ({"": SGD}, TypeError, "must be patterns of parameter paths"),
        ({"*": 0.1}, TypeError, "must be an optax.GradientTransformation"),
        ({"*": as_optimizer(SGD)}, TypeError, "the optimizer of '\\*' must be a transformation of Optax"),
    ],
)
def test_a_dict_of_something_else_is_refused(groups, kind, message):
    with pytest.raises(kind, match=message):
        as_optimizer(groups)
