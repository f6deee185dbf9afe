"""Any number of examples, any batch size, any number of devices, any kind of module: the numbers of one device."""

import dataclasses
from collections.abc import Callable
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
from jax.sharding import NamedSharding, PartitionSpec
from strategy_table import CLASSES, FEATURES, MLP, Managed, haiku_net, one_loss, two_losses

import elegy as eg
from elegy.strategies import FSDP, DataParallel, Sharded


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, training: bool = True) -> jax.Array:
        x = nn.Dropout(0.4, deterministic=not training)(nn.tanh(nn.Dense(12)(x)))
        return nn.Dense(CLASSES)(x)


class Odd(nn.Module):
    """Parameters that no mesh divides: a scalar, odd dimensions; and some of 16 bits."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", lambda key: jnp.ones(()))
        odd = self.param("odd", lambda key: jnp.full((3, 5, 7), 0.01))
        return nn.Dense(CLASSES)(nn.tanh(nn.Dense(12, param_dtype=jnp.bfloat16)(x))) * scale * odd.sum()


class Counting(nnx.Module):
    """State that is no parameter: an integer that counts calls."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.one, self.two = nnx.Linear(FEATURES, 12, rngs=rngs), nnx.Linear(12, CLASSES, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] = self.calls[...] + 1
        return self.two(jnp.tanh(self.one(x)))


class Normalised(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.one, self.two = nnx.Linear(FEATURES, 12, use_bias=False, rngs=rngs), nnx.Linear(12, CLASSES, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.two(jnp.tanh(self.norm(self.one(x))))


def equinox_net() -> Any:
    return eqx.nn.MLP(FEATURES, CLASSES, 12, 1, key=jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Case:
    """A run: how many examples, and how they come."""

    strategy: Callable[[], Any]
    module: Callable[[], Any]
    size: int
    batch_size: int
    losses: Callable[[], dict[str, Any]] = one_loss
    weights: str | None = None
    iterable: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    close: float = 1.0  # multiplies the tolerance
    slow: bool = False


COLUMNS = {"*/kernel": (None, "model")}
CASES = {
    "one row on eight devices": Case(lambda: DataParallel(8), MLP, 3, 1, slow=True),
    "zero weights in a shard and in a batch": Case(
        lambda: DataParallel(3), MLP, 18, 6, two_losses, "first", options={"shuffle": False}
    ),
    "zero weights in a batch of its own shape": Case(
        lambda: Sharded({"data": 3}), MLP, 8, 4, two_losses, "first", options={"shuffle": False}, slow=True
    ),
    "class weights, several steps, a short batch on five": Case(
        lambda: DataParallel(5),
        MLP,
        23,
        3,
        options={"class_weight": {0: 0.5, 2: 0.0, 3: 2.0}, "steps_per_execution": 3},
        slow=True,
    ),
    "several steps on seven": Case(
        lambda: Sharded({"data": 7}), MLP, 33, 5, options={"steps_per_execution": 4}, slow=True
    ),
    "several steps that cannot be masked on three": Case(
        lambda: DataParallel(3), Managed, 23, 6, dict, options={"steps_per_execution": 2}
    ),
    "an iterable on six": Case(
        lambda: FSDP({"data": 6}, min_size=4), lambda: hk.transform(haiku_net), 16, 7, iterable=True, slow=True
    ),
    "a split, and batches of validation of their own": Case(
        lambda: FSDP({"data": 8}, min_size=4), MLP, 29, 5, options={"validation_split": 0.4, "validation_batch_size": 3}
    ),
    "the short batch left out": Case(
        lambda: FSDP({"data": 2, "model": 4}, min_size=4, rules=COLUMNS),
        MLP,
        23,
        8,
        options={"drop_remaining": True},
        slow=True,
    ),
    "four by two": Case(lambda: FSDP({"data": 4, "model": 2}, min_size=4, rules=COLUMNS), MLP, 23, 8, slow=True),
    "several data axes, odd parameters": Case(
        lambda: FSDP({"a": 2, "b": 3}, min_size=2), Odd, 20, 7, close=50, slow=True
    ),  # 8 bits of a significand
    "several model axes": Case(
        lambda: Sharded({"d": 2, "m": 2, "n": 2}, rules={"*/kernel": ("n", "m"), "Dense_0/bias": (("m", "n"),)}),
        MLP,
        11,
        4,
        slow=True,
    ),
    "axes that divide data and parameters": Case(
        lambda: FSDP({"data": 2, "model": 2}, data_axes=("data", "model"), rules=COLUMNS, min_size=4),
        MLP,
        11,
        4,
        slow=True,
    ),
    "no data axis": Case(lambda: FSDP({"model": 4}, rules=COLUMNS, min_size=4), MLP, 11, 4),
    "dropout on three": Case(lambda: Sharded({"data": 3}), Dropped, 17, 7, slow=True),
    "dropout in parts": Case(lambda: FSDP({"data": 8}, min_size=4), Dropped, 17, 7),
    "equinox, data parallel": Case(lambda: DataParallel(8), equinox_net, 19, 5, slow=True),
    "equinox in parts": Case(lambda: FSDP({"data": 3}, min_size=4), equinox_net, 19, 5, slow=True),
    "nnx, data parallel": Case(lambda: DataParallel(6), Counting, 19, 5, slow=True),
    "nnx in parts": Case(lambda: FSDP({"data": 2, "more": 2}, min_size=4), Counting, 19, 5, slow=True),
    "batch statistics in parts": Case(
        lambda: FSDP({"data": 4}, min_size=4, shard_batch_stats=True), Normalised, 19, 8, iterable=True
    ),
}


def results(case: Case, strategy: Any) -> dict[str, Any]:
    """Everything that must not depend on the strategy."""
    rng = np.random.default_rng(case.size)
    x = rng.normal(size=(case.size, FEATURES)).astype(np.float32)
    batch: tuple[np.ndarray, ...] = x, rng.integers(0, CLASSES, case.size)
    if case.weights == "first":
        weight = rng.uniform(0.1, 2.0, case.size).astype(np.float32)
        weight[: case.batch_size] = 0
        batch = (*batch, weight)
    trainer = eg.Trainer(case.module(), optimizer=optax.adam(1e-2), strategy=strategy, **case.losses())
    options = {"epochs": 2, "verbose": 0, **case.options}
    if case.iterable:
        starts = range(0, case.size, case.batch_size)
        batches = [tuple(a[start : start + case.batch_size] for a in batch) for start in starts]
        inputs = [(b[0],) for b in batches]
        history = trainer.fit(batches, validation_data=batches, **options).history
        evaluation, outputs = trainer.evaluate(batches, verbose=0), trainer.predict(lambda: iter(inputs))
        parts = list(trainer.predict_iter(lambda: iter(inputs)))
    else:
        given = dict(zip(("labels", "sample_weight"), batch[1:], strict=False))
        history = trainer.fit(x, **given, batch_size=case.batch_size, **options).history
        evaluation = trainer.evaluate(x, **given, batch_size=case.batch_size + 2, verbose=0)
        outputs = trainer.predict(x, batch_size=case.batch_size)
        parts = list(trainer.predict_iter(x, batch_size=case.batch_size))
    state = trainer.state
    return {
        "history": history,
        "evaluation": evaluation,
        "outputs": outputs,
        "parts": parts,
        "state": [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves((state.params, state.batch_stats))],
    }


REFERENCES: dict[Any, Any] = {}


def on_one_device(case: Case) -> dict[str, Any]:
    """The same run under `"jit"`, made once for all cases that differ in their strategy alone."""
    key = case.module, case.size, case.batch_size, case.losses, case.weights, case.iterable, repr(case.options)
    if key not in REFERENCES:
        REFERENCES[key] = results(case, "jit")
    return REFERENCES[key]


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.slow if case.slow else ()) for name, case in CASES.items()]
)
def test_a_run_equals_the_run_on_one_device(case: str) -> None:
    one = CASES[case]
    expected, actual = on_one_device(one), results(one, one.strategy())
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    rtol, atol = 2e-4 * one.close, 2e-5 * one.close  # sums over devices are taken in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


@pytest.mark.parametrize("strategy", ["jit", "data_parallel", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_arrays_on_a_mesh_with_explicit_axes_are_data_like_others(strategy: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 24)
    place = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
    found = []
    for inputs in (x, jax.device_put(x, place)):
        trainer = eg.Trainer(MLP(), optimizer=optax.adam(1e-2), strategy=strategy, **one_loss())
        history = trainer.fit(inputs, y, batch_size=8, epochs=2, verbose=0).history["loss"]
        logs = trainer.evaluate(inputs, y, batch_size=8, verbose=0)
        found.append((history, logs, trainer.predict(inputs, batch_size=8)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)
