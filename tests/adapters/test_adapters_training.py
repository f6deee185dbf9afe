"""Every adapter, trained by a Trainer and by a bare JAX loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from some_cases import some

import elegy as eg

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype(np.float32)
Y = np.stack([X.sum(1), X[:, 0] * X[:, 1]], 1)
SIZE = 8  # the last batch of an epoch is short


@dataclass
class Case:
    """A module, where it starts, and its library's own call: `(params, state, x, training) -> (outputs, state)`."""

    module: Any
    params: Any
    state: Any
    call: Callable
    variables: Any = None


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x))
        self.sow("losses", "energy", jnp.mean(x**2))
        return nn.Dense(2)(nn.tanh(x))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.norm(self.first(x))))


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        self.first, self.last = eqx.nn.Linear(3, 4, key=key), eqx.nn.Linear(4, 2, key=key)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.last(jnp.tanh(x)), state


def linen():
    variables = Linen().init(KEY, X, False)

    def call(params, state, x, training):
        out, after = Linen().apply(
            {"params": params, "batch_stats": state}, x, training, mutable=["batch_stats", "losses"]
        )
        return (out, after["losses"]["energy"][0]), after["batch_stats"]

    return Case(Linen(), variables["params"], variables["batch_stats"], call, variables)


def nnx_module():
    model = NNX(nnx.Rngs(0))

    def call(params, state, x, training):
        copy = nnx.clone(model)
        copy.train() if training else copy.eval()
        graph, _, _, rest = nnx.split(copy, nnx.Param, nnx.BatchStat, ...)
        merged = nnx.merge(graph, params, state, rest, copy=True)
        out = merged(x)
        return (out, 0.0), nnx.as_pure(nnx.state(merged, nnx.BatchStat))

    params, state = (nnx.as_pure(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat))
    return Case(model, params, state, call)


def equinox():
    model, state = eqx.nn.make_with_state(Equinox)(KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def call(params, state, x, training):
        whole = eqx.nn.inference_mode(eqx.combine(params, static), not training)
        out, state = jax.vmap(whole, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return (out, 0.0), state

    return Case((model, state), params, state, call)


def haiku():
    def network(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)
        return hk.Linear(2)(jnp.tanh(x))

    transformed = hk.transform_with_state(network)
    params, state = transformed.init(KEY, X, True)

    def call(params, state, x, training):
        out, state = transformed.apply(params, state, None, x, training)
        return (out, 0.0), state

    return Case(transformed, params, state, call, (params, state))


def functions():
    def init(key, x):
        one, two = jax.random.split(key)
        return {"a": jax.random.normal(one, (x.shape[-1], 4)), "b": jax.random.normal(two, (4, 2))}

    def apply(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    params = init(KEY, X)
    return Case((init, apply), params, {}, lambda p, s, x, training: ((apply(p, x), 0.0), s), params)


CASES = [linen, nnx_module, equinox, haiku, functions]


def bare_loop(case: Case, tx: Any, epochs: int) -> tuple[Any, Any, list[float]]:
    """Trains without any of Elegy; the losses are means over the examples of each epoch."""

    @jax.jit
    def step(params, state, opt, x, y):
        def loss(params):
            (out, extra), after = case.call(params, state, x, True)
            return jnp.mean((out - y) ** 2) + extra, after

        (value, after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), after, opt, value

    params, state, opt, losses = case.params, case.state, tx.init(case.params), []
    for _ in range(epochs):
        total = 0.0
        for start in range(0, len(X), SIZE):
            x, y = X[start : start + SIZE], Y[start : start + SIZE]
            params, state, opt, value = step(params, state, opt, x, y)
            total += float(value) * len(x)
        losses.append(total / len(X))
    return params, state, losses


def leaves(tree: Any, *, floats: bool = True) -> list[np.ndarray]:
    found = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [leaf for leaf in found if np.issubdtype(leaf.dtype, np.floating) == floats]


def assert_close(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)  # two compilations of float32 steps


@pytest.mark.parametrize("make", CASES)
def test_training_is_the_bare_loops(make):
    case, tx = make(), optax.sgd(0.05, momentum=0.9)
    before = leaves(jax.tree.map(np.array, (case.params, case.state)))
    trainer = eg.Trainer(case.module, loss=eg.losses.MeanSquaredError(), optimizer=tx, variables=case.variables)
    history = trainer.fit(X, Y, batch_size=SIZE, epochs=3, shuffle=False, verbose=0)
    params, state, losses = bare_loop(case, tx, 3)
    assert_close(leaves(trainer.state.params), leaves(params))
    assert_close(leaves(trainer.state.batch_stats), leaves(state))
    np.testing.assert_allclose(history.history["loss"], losses, rtol=2e-5)  # as above
    expected = np.asarray(case.call(params, state, X, False)[0][0])
    np.testing.assert_allclose(trainer.predict(X, batch_size=SIZE), expected, rtol=2e-5, atol=1e-5)  # as above
    # What training started from is still there.
    assert_close(leaves((case.params, case.state)), before)


@pytest.mark.parametrize("make", some([nnx_module, functions], 1))
def test_training_is_the_same_eagerly(make):
    ends = []
    for strategy in ("jit", "eager"):
        case = make()
        trainer = eg.Trainer(
            case.module,
            loss=eg.losses.MeanSquaredError(),
            optimizer=optax.sgd(0.05),
            variables=case.variables,
            strategy=strategy,
        )
        trainer.fit(X, Y, batch_size=10, epochs=1, shuffle=False, verbose=0)
        ends.append(leaves((trainer.state.params, trainer.state.batch_stats)))
    assert_close(*ends)


@pytest.mark.parametrize("make", [linen, nnx_module])
def test_a_second_init_starts_over(make):
    case = make()
    trainer = eg.Trainer(
        case.module, loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), variables=case.variables
    )
    trainer.fit(X, Y, batch_size=10, verbose=0)
    trainer.init_on_batch(X[:10], Y[:10])
    assert_close(leaves(trainer.state.params), leaves(case.params))


def test_the_nnx_object_is_updated_after_training():
    case = nnx_module()
    trainer = eg.Trainer(case.module, loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.05))
    trainer.fit(X, Y, batch_size=SIZE, epochs=2, verbose=0)
    trainer.state.update(case.module)
    trainer.fit(X, Y, batch_size=SIZE, verbose=0)  # and what it was given stays valid
    case.module.eval()
    model = trainer.state.to_module()
    model.eval()
    np.testing.assert_allclose(model(X), trainer.predict(X), rtol=2e-5, atol=1e-5)  # compiled against not
    assert not np.allclose(case.module(X), model(X))


def test_sown_losses_are_shown():
    case = linen()
    trainer = eg.Trainer(
        case.module, loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.0), variables=case.variables
    )
    logs = trainer.evaluate(X, Y, batch_size=SIZE, verbose=0)
    assert set(logs) == {"loss", "energy", "mean_squared_error"}
    (_, energy), _ = case.call(case.params, case.state, X, False)
    assert logs["energy"] == pytest.approx(float(energy), rel=1e-5)  # a mean of float32 batch means
