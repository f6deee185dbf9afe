"""`Trainer(precision=...)`: what computes in which dtype, for every module library, and the loss scale of float16."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import numpy as np
import optax
import pytest
from boring_modules import Core, Managed, assert_same_bits, regression
from flax import nnx
from sklearn.datasets import load_digits
from some_cases import some

import elegy as eg
from elegy.jaxprs import equations
from elegy.loading.chunks import structure
from elegy.losses import MeanSquaredError
from elegy.strategies import DataParallel

X, Y = regression(16)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not training)(nn.Dense(4)(x)))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.norm, self.b = (
            nnx.Linear(3, 4, rngs=rngs),
            nnx.LayerNorm(4, rngs=rngs),
            nnx.Linear(4, 2, rngs=rngs),
        )

    def __call__(self, x):
        return self.b(self.norm(self.a(x)))


def haiku_net(x, is_training):
    return hk.Linear(2)(hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training))


class Equinox(eqx.Module):
    a: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    b: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.a, self.b = eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])

    def __call__(self, x, state):
        x, state = self.norm(self.a(x), state)
        return self.b(x), state


def functions():
    def init(key, x):
        return {"w": jax.random.normal(key, (3, 2)), "b": jnp.zeros(2)}

    def apply(params, x):
        return x @ params["w"] + params["b"]

    return init, apply


MODULES = {
    "linen": Linen,
    "nnx": Nnx,
    "haiku": lambda: hk.transform_with_state(haiku_net),
    "equinox": lambda: eqx.nn.make_with_state(Equinox)(jax.random.key(0)),
    "functions": functions,
    "managed": Managed,
}


def make(kind="linen", **kwargs):
    loss = None if kind == "managed" else [MeanSquaredError(), eg.regularizers.L2(1e-3)]
    return eg.Trainer(MODULES[kind](), loss, optimizer=optax.adam(1e-2), **kwargs)


def products(trainer):
    """The dtypes that go into the products of matrices of a training step."""
    program = trainer._session.executor.program("train", trainer._session.buffer, structure((X, Y)), None)
    dots = [e for e in equations(program.closed) if "dot_general" in str(e.primitive)]
    return {str(variable.aval.dtype) for equation in dots for variable in equation.invars}


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize("kind", some(MODULES, 2))
def test_products_run_in_the_dtype_of_the_policy_and_the_state_stays_in_float32(kind):
    trainer = make(kind, precision="mixed_bfloat16", accumulate=2 if kind == "managed" else 1)
    trainer.train_on_batch(X, Y)
    assert products(trainer) == {"bfloat16"}
    assert dtypes(trainer.state) == {"float32"}
    assert trainer.predict(X).dtype == np.float32
    assert products(make_run(kind, "float32")) == {"float32"}


def make_run(kind, precision):
    trainer = make(kind, precision=precision)
    trainer.train_on_batch(X, Y)
    return trainer


def test_everything_in_bfloat16_but_the_optimizer():
    trainer = make_run("linen", "bfloat16")
    assert dtypes(trainer.state.params) == {"bfloat16"}
    assert dtypes((trainer.state.optimizer, trainer.state.batch_stats)) == {"float32"}
    assert trainer.predict(X).dtype == jnp.bfloat16


def bare_step(params, scale=1.0):
    """One step of gradient descent by hand: products in float16, the rest in float32."""

    def loss(params):
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
        preds = X.astype(np.float16) @ half["w"] + half["b"]
        return scale * jnp.mean((preds.astype(jnp.float32) - Y) ** 2)

    return jax.tree.map(lambda p, g: p - 0.1 * g / scale, params, jax.grad(loss)(params))


def float16(strategy="jit", accumulate=1, **kwargs):
    policy = eg.Precision(compute="float16", output="float32", **kwargs)
    options = {"strategy": strategy, "accumulate": accumulate, "precision": policy}
    return eg.Trainer(functions(), MeanSquaredError(), optimizer=optax.sgd(0.1), **options)


@pytest.mark.parametrize(("strategy", "count"), [("jit", 1), ("data_parallel", 3)])
def test_a_step_in_float16_is_the_step_by_hand(strategy, count):
    strategy = DataParallel(2) if strategy == "data_parallel" else strategy
    trainer = float16(strategy, count, loss_scale=1024.0)
    trainer.init_on_batch(X, Y)
    expected = bare_step(jax.tree.map(np.array, trainer.state.params), 1024.0)
    logs = trainer.train_on_batch(X, Y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), trainer.state.params, expected)
    assert logs["loss"] < 100  # not multiplied by the scale


def test_an_overflow_leaves_out_the_step_and_halves_the_loss_scale():
    trainer = float16(loss_scale=2.0**24, growth_interval=2)
    trainer.init_on_batch(X, Y)
    start, scales = jax.tree.map(np.array, trainer.state.params), []
    while not scales or scales[-1] < (scales[-2] if len(scales) > 1 else np.inf):
        assert_same_bits(trainer.state.params, start)  # so far each step was left out
        trainer.train_on_batch(X, Y)
        scales.append(float(trainer.state.dynamic_loss_scale.value))
    assert scales[:2] == [2.0**23, 2.0**22]
    assert float(trainer.state.dynamic_loss_scale.finite_steps) == 1
    assert not np.array_equal(trainer.state.params["w"], start["w"])
    trainer.train_on_batch(X, Y)
    assert float(trainer.state.dynamic_loss_scale.value) == 2 * scales[-1]  # two finite steps in a row


def test_overflows_of_scaled_gradients_are_ignored_but_not_a_loss_that_is_not_finite():
    policy = eg.Precision(compute="float16", output="float32", loss_scale=2.0**24)
    trainer = eg.Trainer(functions(), MeanSquaredError(), optimizer=optax.sgd(0.1), precision=policy, nonfinite="raise")
    trainer.train_on_batch(X, Y)
    assert float(trainer.state.dynamic_loss_scale.value) == 2.0**23
    with pytest.raises(eg.errors.NonFiniteError):
        trainer.train_on_batch(np.full_like(X, np.nan), Y)


def test_a_finite_loss_is_never_reported_as_infinite_because_the_scale_has_grown():
    """All gradients are zero, so every step is finite and doubles the scale."""
    policy = eg.Precision("float32", "float16", "float32", growth_interval=1)
    loss = eg.losses.FunctionLoss(lambda preds: 0 * preds.sum(-1) + 5.0, name="constant")
    trainer = eg.Trainer(functions(), loss, optimizer=optax.sgd(0.1), precision=policy, nonfinite="raise")
    history = trainer.fit(np.ones((140, 3), np.float32), batch_size=1, verbose=0).history
    assert history["loss"] == [5.0]
    assert trainer.skipped_steps == 0
    assert float(trainer.state.dynamic_loss_scale.value) == 2.0**64


def test_a_run_in_float16_is_resumed_to_the_same_bits(tmp_path):
    whole, first, second = (float16(loss_scale=2.0**20, growth_interval=3) for _ in range(3))
    options = {"batch_size": 4, "verbose": 0, "epochs": 2}
    whole.fit(X, Y, **options)
    first.fit(X, Y, **options, max_steps=5)
    first.save(tmp_path / "run")
    second.fit(X, Y, **options, resume=tmp_path / "run")
    assert_same_bits(second.state.params, whole.state.params)
    assert_same_bits(second.state.dynamic_loss_scale, whole.state.dynamic_loss_scale)
    assert float(whole.state.dynamic_loss_scale.value) != 2.0**20


@pytest.mark.slow
def test_digits_in_bfloat16_and_float16_are_as_accurate_as_in_float32():
    x, y = load_digits(return_X_y=True)
    x, tests = (x / 16).astype(np.float32), np.arange(len(x)) % 4 == 0
    found = {}
    for name in ("float32", "mixed_bfloat16", "mixed_float16"):
        model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
        trainer = eg.Trainer(model, eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.adam(1e-2), precision=name)
        trainer.fit(x[~tests], y[~tests], epochs=12, batch_size=100, verbose=0)
        found[name] = trainer.evaluate(x[tests], y[tests], verbose=0)["accuracy"]
    assert found["float32"] > 0.95
    assert max(found.values()) - min(found.values()) <= 0.01


def test_policies_are_written_as_jmp_writes_them():
    for text in ("params=float32,compute=bfloat16,output=float32", "p=f32,c=bf16,o=f32", "c=bf16", "p=f16,c=bf16"):
        policy, expected = eg.module.precision.as_precision(text), jmp.get_policy(text)
        for part in ("param", "compute", "output"):
            name = "params" if part == "param" else part
            assert jnp.dtype(getattr(policy, name)) == jnp.dtype(getattr(expected, f"{part}_dtype"))
        assert eg.module.precision.as_precision(expected) == policy


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ("bf17", ValueError, "'bf17' is not known. Names: 'float32', 'bfloat16', 'mixed_bfloat16', 'mixed_float16'"),
        ("bf16-mixed", ValueError, "'bf16-mixed' is not known: write 'mixed_bfloat16'."),
        ("params=float32,weights=float32", ValueError, "is not known. Names"),
        ("compute=int8", ValueError, "'int8' of a precision is not known. Dtypes: bfloat16, float16, float32"),
        (16, TypeError, "precision must be a name or an elegy.Precision, not 16"),
        ("compute=float64", ValueError, "jax_enable_x64"),
    ],
)
def test_an_unknown_precision_is_refused(value, error, match):
    with pytest.raises(error, match=match):
        make(precision=value)


def test_a_core_level_step_is_refused_before_anything_runs():
    trainer = eg.Trainer(Core(), precision="mixed_bfloat16")
    with pytest.raises(eg.errors.StepError, match=r"Core.train_step is a core-level step"):
        trainer.fit(X, Y, verbose=0)
    assert trainer.step == 0
