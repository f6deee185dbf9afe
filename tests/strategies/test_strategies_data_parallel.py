"""Data parallelism is what a hand-written `pmap` loop does."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from strategy_table import CLASSES, FEATURES, MODELS, ConvNet, data

import elegy as eg
from elegy.module.managed import split_key
from elegy.strategies import FSDP, DataParallel, Sharded, Strategy

DEVICES = 4


def pmap_loop(variables: Any, x: np.ndarray, y: np.ndarray, batch_size: int) -> tuple[list[float], Any]:
    """One epoch in order; each device normalises by its own rows, statistics and gradients are averaged."""
    module, tx = ConvNet(), optax.adam(1e-2)

    def objective(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> Any:
        logits, updated = module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updated["batch_stats"]

    def step(params: Any, stats: Any, moments: Any, x: jax.Array, y: jax.Array) -> Any:
        (loss, stats), grads = jax.value_and_grad(objective, has_aux=True)(params, stats, x, y)
        loss, stats, grads = jax.lax.pmean((loss, stats, grads), "device")
        updates, moments = tx.update(grads, moments, params)
        return loss, optax.apply_updates(params, updates), stats, moments

    step = jax.pmap(step, axis_name="device", in_axes=(None, None, None, 0, 0), out_axes=None)
    params, stats = variables["params"], variables["batch_stats"]
    moments = tx.init(params)
    losses = []
    for start in range(0, len(x), batch_size):
        rows = [a[start : start + batch_size] for a in (x, y)]
        xs, ys = (a.reshape(DEVICES, -1, *a.shape[1:]) for a in rows)
        loss, params, stats, moments = step(params, stats, moments, xs, ys)
        losses.append(float(loss))
    return losses, {"params": params, "batch_stats": stats}


def test_batch_normalisation_equals_a_hand_written_pmap_loop() -> None:
    x, y, _, batch_size = data("many")
    trainer = MODELS["conv"].trainer(DataParallel(DEVICES))
    trainer.init_on_batch(x[:batch_size], y[:batch_size])
    start = jax.tree.map(np.asarray, {"params": trainer.state.params, "batch_stats": trainer.state.batch_stats})
    losses, end = pmap_loop(start, x, y, batch_size)
    history = trainer.fit(x, y, epochs=1, batch_size=batch_size, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [np.mean(losses)], rtol=1e-5)
    actual = {"params": trainer.state.params, "batch_stats": trainer.state.batch_stats}
    # Adam divides small gradients by small roots; the two programs round them differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, end)


class Draws(eg.ElegyModule):
    """Logs a draw, and the number of rows that a step sees."""

    def managed_init_step(self, key, batch):
        return self.replace(params={"w": jnp.zeros(())})

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        state = self.log("draw", jax.random.uniform(key)).log("rows", float(batch.shape[0]), reduce="max")
        return self.params["w"] * 0.0, state.log("sum", jnp.sum(batch), reduce="sum")

    def managed_pred_step(self, key, batch, batch_idx):
        return {"rows": batch * 2, "mean": jnp.mean(batch, axis=0), "count": jnp.float32(batch.shape[0])}, self


@pytest.mark.parametrize(("rows", "seen"), [(8, 2), (6, 6), (3, 3)])
def test_each_replica_has_its_rows_and_a_random_stream_of_its_own(rows: int, seen: int) -> None:
    trainer = eg.Trainer(Draws(), optimizer=optax.sgd(0.1), strategy=DataParallel(DEVICES))
    x = np.arange(rows, dtype=np.float32)
    trainer.init_on_batch(x)
    step_key = split_key(trainer.state, "train", Strategy())[1]  # the one that a single replica would draw from
    logs = trainer.train_on_batch(x)
    assert logs["rows"] == seen
    assert logs["sum"] == x.sum()
    keys = [jax.random.fold_in(step_key, i) for i in range(DEVICES)] if seen < rows else [step_key]
    np.testing.assert_allclose(logs["draw"], np.mean([jax.random.uniform(key) for key in keys]), rtol=1e-6)


@pytest.mark.parametrize("strategy", ["jit", lambda: DataParallel(DEVICES), lambda: Sharded({"data": DEVICES})])
def test_outputs_without_a_row_an_example_are_those_of_the_whole_batch(strategy: Any) -> None:
    trainer = eg.Trainer(
        Draws(), optimizer=optax.sgd(0.1), strategy=strategy if isinstance(strategy, str) else strategy()
    )
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    trainer.init_on_batch(x)
    out = trainer.predict(x, batch_size=8)
    np.testing.assert_allclose(out["rows"], 2 * x, rtol=1e-6)
    np.testing.assert_allclose(out["mean"], x.mean(axis=0), rtol=1e-5)
    assert out["count"] == 8


class Core(eg.ElegyModule):
    """A core-level step: global arrays, placed on the mesh, and a `jax.jit` of the user's own."""

    def init_step(self, key, batch):
        params = {"w": jnp.zeros((FEATURES, CLASSES))}
        return self.replace(params=params, key=key)

    def train_step(self, batch, batch_idx, epoch_idx):
        loss, params = descend(self.params, *batch)
        devices = len(batch[0].sharding.device_set) if isinstance(batch[0], jax.Array) else 1
        return {"loss": loss, "devices": float(devices)}, self.replace(params=params)

    def pred_step(self, batch, batch_idx):
        return batch @ self.params["w"], self


@jax.jit
def descend(params: Any, x: jax.Array, y: jax.Array) -> Any:
    def objective(params: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["w"], y).mean()

    loss, grads = jax.value_and_grad(objective)(params)
    return loss, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


@pytest.mark.parametrize(
    "strategy", [DataParallel, lambda n: Sharded({"data": n}), lambda n: FSDP({"data": n}, min_size=8)]
)
def test_a_core_level_step_receives_global_arrays_on_the_mesh(strategy: Any) -> None:
    x, y, _, _ = data("many")
    runs = {}
    for name, chosen in (("jit", "jit"), ("mesh", strategy(DEVICES))):
        trainer = eg.Trainer(Core(), strategy=chosen)
        history = trainer.fit(x, y, epochs=2, batch_size=8, verbose=0)
        runs[name] = (history.history["loss"], np.asarray(trainer.state.params["w"]), trainer.predict(x, batch_size=8))
    assert history.history["devices"] == [DEVICES, DEVICES]
    for a, b in zip(runs["jit"], runs["mesh"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["data_parallel", "fsdp"])
def test_a_run_of_three_thousand_steps_on_eight_devices_finishes(strategy: str) -> None:
    trainer = eg.Trainer(
        MODELS["mlp"].make(), loss=eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1), strategy=strategy
    )
    x, y, _, _ = data("many")
    x, y = np.tile(x, (250, 1)), np.tile(y, 250)
    # Within an epoch nothing reads a log, so that steps queue up as far as they may.
    trainer.fit(x, y, epochs=3, batch_size=8, steps_per_execution=1, verbose=0)
    assert trainer.step == 3000
    assert trainer.history.history["loss"][-1] < trainer.history.history["loss"][0]


class OwnMean(nn.Module):
    """Keeps a running mean in a collection of its own."""

    @nn.compact
    def __call__(self, x, training=False):
        mean = self.variable("own", "mean", lambda: jnp.zeros(x.shape[-1]))
        if training and not self.is_initializing():
            mean.value = 0.5 * mean.value + 0.5 * x.mean(0)
        return nn.Dense(3)(x)


def test_what_a_module_computes_of_its_rows_is_the_same_on_all_devices():
    x, y = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32), np.arange(24) % 3
    found = []
    for strategy in ("jit", DataParallel(4)):
        trainer = eg.Trainer(OwnMean(), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1), strategy=strategy)
        trainer.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        found += [np.asarray(part.data) for part in trainer.state.collections["own"]["mean"].addressable_shards]
    assert len(found) == 5
    for mean in found[1:]:
        np.testing.assert_allclose(mean, found[0], rtol=1e-5, atol=1e-6)


def test_averages_of_half_precision_do_not_overflow():
    class Half(eg.ElegyModule):
        def init(self, key, inputs):
            return self.replace(params={"w": jnp.ones((5, 3))}, batch_stats={"top": jnp.zeros(5, jnp.float16)})

        def apply(self, key, inputs, training):
            top = self.replace(batch_stats={"top": jnp.max(inputs, 0).astype(jnp.float16)})
            return inputs @ self.params["w"], top if training else self

    x = np.full((512, 5), 1_000, np.float32)
    trainer = eg.Trainer(Half(), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1), strategy=DataParallel(4))
    trainer.fit(x, np.zeros(512, int), batch_size=512, verbose=0)
    np.testing.assert_array_equal(trainer.state.batch_stats["top"], np.full(5, 1_000, np.float16))
