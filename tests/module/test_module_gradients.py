"""Gradients of complex parameters point downhill, at every level that computes them and under every strategy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from some_cases import some

import elegy as eg
from elegy.module.finite import check_finite
from elegy.module.gradients import WatchedGradient, conjugate, optimizer_arguments
from elegy.strategies import FSDP, DataParallel, Sharded
from elegy.strategies.strategy import Strategy

RNG = np.random.default_rng(0)


def complex_normal(*shape):
    return (RNG.normal(size=shape) + 1j * RNG.normal(size=shape)).astype(np.complex64)


X, START, TARGET = complex_normal(16, 3), complex_normal(3, 2), complex_normal(3, 2)
BIAS = RNG.normal(size=2).astype(np.float32)  # a real leaf beside the complex one
Y = X @ TARGET + 1
CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # complex64, sums in another order than the reference's
BATCH, STEPS = 8, 6


def squares(params, x, y):
    return jnp.abs(x @ params["z"] + params["b"] - y) ** 2


class High(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params={"z": jnp.asarray(START), "b": jnp.asarray(BIAS)})

    def apply(self, key, inputs, training):
        return inputs @ self.params["z"] + self.params["b"], self


class Managed(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean(squares(self.params, *batch)), self


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.05),
    "adam": lambda: optax.adam(0.05),
    "split adam": lambda: optax.contrib.split_real_and_imaginary(optax.adam(0.05)),
    "lbfgs": lambda: optax.lbfgs(memory_size=2, linesearch=optax.scale_by_zoom_linesearch(3)),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    "opaque sam": lambda: optax.contrib.sam(optax.sgd(0.05), optax.sgd(0.02), opaque_mode=True),
}


def batches():
    for _ in range(STEPS // 2):
        for start in range(0, 16, BATCH):
            yield X[start : start + BATCH], Y[start : start + BATCH]


def bare(name):
    """The loop of a user who knows that JAX's gradient is the conjugate of what descent needs."""
    tx = OPTIMIZERS[name]()
    params = {"z": jnp.asarray(START), "b": jnp.asarray(BIAS)}
    state = tx.init(params)
    for x, y in batches():

        def loss(params, x=x, y=y):
            return jnp.mean(squares(params, x, y))

        def grad_fn(params, _=None, loss=loss):
            return jax.tree.map(jnp.conj, jax.grad(loss)(params))

        grads = grad_fn(params)
        extra = {"value": loss(params), "grad": grads, "value_fn": loss} if name in ("lbfgs", "backtracking") else {}
        extra = {"grad_fn": grad_fn} if name == "opaque sam" else extra
        updates, state = tx.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


def train(module, name, strategy="jit"):
    loss = lambda target, preds: jnp.mean(jnp.abs(target - preds) ** 2, -1)  # noqa: E731  # of high level only
    kwargs = {"loss": loss} if type(module) is High else {}
    trainer = eg.Trainer(module, optimizer=OPTIMIZERS[name](), strategy=strategy, **kwargs)
    trainer.fit(X, Y, batch_size=BATCH, epochs=STEPS // 2, shuffle=False, verbose=0)
    return trainer.state.params


CASES = [(High, name, "jit") for name in OPTIMIZERS if name != "lbfgs"]
CASES += [(Managed, "adam", "eager"), (Managed, "lbfgs", "jit"), (Managed, "backtracking", DataParallel(2))]
CASES += [(High, "adam", FSDP({"data": 2}, min_size=2)), (Managed, "opaque sam", DataParallel(2))]


@pytest.mark.parametrize(("level", "optimizer", "strategy"), some(CASES, 4))
def test_complex_parameters_train_as_in_a_bare_loop(level, optimizer, strategy):
    expected = bare(optimizer)
    for name, value in train(level(), optimizer, strategy).items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_allclose(value, expected[name], **CLOSE)


@pytest.mark.parametrize("name", ["sgd", "split adam"])
def test_complex_parameters_train_as_their_real_and_imaginary_parts(name):
    tx = optax.sgd(0.05) if name == "sgd" else optax.adam(0.05)
    params = {"re": jnp.asarray(START.real), "im": jnp.asarray(START.imag), "b": jnp.asarray(BIAS)}
    state = tx.init(params)
    for x, y in batches():

        def loss(params, x=x, y=y):
            return jnp.mean(squares({"z": params["re"] + 1j * params["im"], "b": params["b"]}, x, y))

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    got = train(High(), name)
    np.testing.assert_allclose(got["z"], params["re"] + 1j * params["im"], **CLOSE)
    np.testing.assert_allclose(got["b"], params["b"], **CLOSE)


def test_the_functions_for_optimizers_follow_the_conventions_of_jax():
    params = {"z": jnp.asarray(START), "b": jnp.asarray(BIAS)}

    def loss(params):
        return jnp.mean(squares(params, X, Y))

    given = optimizer_arguments(loss, Strategy())
    value, grads = jax.value_and_grad(given["value_fn"])(params)
    wanted = jax.grad(loss)(params)
    tangents = {"z": jnp.asarray(TARGET), "b": jnp.asarray(BIAS)}
    np.testing.assert_allclose(value, loss(params), rtol=1e-6)
    for one, other, ascent in zip(*map(jax.tree.leaves, (grads, wanted, given["grad_fn"](params, 0))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
        np.testing.assert_allclose(ascent, np.conj(other), rtol=1e-5)
    np.testing.assert_allclose(
        jax.jvp(given["value_fn"], (params,), (tangents,))[1], jax.jvp(loss, (params,), (tangents,))[1], rtol=1e-5
    )
    for one, other in zip(jax.tree.leaves(conjugate(grads)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, np.conj(other), rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "finite"),
    [(3e38 + 3e38j, True), (1 + 1j * np.nan, False), (complex(np.inf, 0), False), (-np.inf * 1j, False), (0j, True)],
)
def test_a_complex_gradient_is_finite_where_both_parts_are(value, finite):
    """The modulus of the first is beyond float32."""
    check = check_finite(jnp.float32(1), [jnp.array([0, value], jnp.complex64)])
    assert bool(check.finite) is finite
    assert check.bad.tolist() == [not finite, not finite]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_element_of_a_large_gradient_is_found_wherever_it_lies(value):
    """Within the parts into which XLA cuts a reduction, and on any of several devices."""
    mesh = Sharded({"data": 4}).mesh
    check = jax.jit(lambda grads: check_finite(jnp.float32(1), grads).finite)
    for row in (0, 1500, 4095):
        large = jnp.ones((4096, 1024), jnp.float32).at[row, 7].set(value)
        assert not check([large])
        assert not check([jax.device_put(large, NamedSharding(mesh, PartitionSpec("data")))])
    assert check([jnp.full((4096, 1024), 3e38)])


def errors(target, preds):
    return (jnp.sign(preds) != target).astype(jnp.float32)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (errors, {}),
        (lambda target, preds: jnp.ones(len(preds)), {"accumulate": 2}),
        (lambda target, preds: jax.lax.stop_gradient(preds - target), {"strategy": "eager"}),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_loss_without_a_gradient_is_told_before_the_first_step(loss, options, beside):
    class Line(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params={"w": jnp.ones(2)})

        def apply(self, key, inputs, training):
            return inputs @ self.params["w"], self

    x = np.ones((4, 2), np.float32)
    losses = [loss, eg.losses.MeanSquaredError()] if beside else loss
    trainer = eg.Trainer(Line(), losses, optimizer=optax.sgd(0.1), **options)
    if beside:
        trainer.fit(x, x[:, 0], verbose=0)
        assert not np.allclose(trainer.state.params["w"], 1.0)
        return
    with pytest.warns(UserWarning, match="nothing is trained: the loss of Line has no gradient"):
        trainer.fit(x, x[:, 0], verbose=0)
    assert np.array_equal(trainer.state.params["w"], np.ones(2))


def test_the_watched_gradient_is_that_of_the_objective():
    def objective(w):
        return jnp.sum(jnp.cos(w)), None

    watched = WatchedGradient(objective)
    w = jnp.arange(3.0)
    assert str(jax.make_jaxpr(jax.grad(watched, has_aux=True))(w)) == str(
        jax.make_jaxpr(jax.grad(objective, has_aux=True))(w)
    )
    assert watched.differentiable
