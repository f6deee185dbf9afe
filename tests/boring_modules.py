"""One small regression at every level, and the bare JAX loop that they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import elegy as eg
from elegy.data import epoch_permutation
from elegy.strategies import FSDP, DataParallel, Sharded

FEATURES, OUTPUTS = 3, 2

STRATEGIES = {
    "eager": lambda: "eager",
    "jit": lambda: "jit",
    "data_parallel": lambda: DataParallel(2),
    "data_parallel_4": lambda: DataParallel(4),
    "sharded": lambda: Sharded({"data": 2}),
    "fsdp": lambda: FSDP({"data": 2}, min_size=2),
}
"""Makers of strategies, on at most four devices, whose results must be equal."""


def regression(size: int = 22, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`size` noisy examples: inputs of shape (size, 3) and labels of shape (size, 2), float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, FEATURES)).astype(np.float32)
    y = np.stack([x.sum(1), x[:, 0] * x[:, 1]], 1) + 0.1 * rng.normal(size=(size, OUTPUTS))
    return x, y.astype(np.float32)


def weights(size: int = 22, seed: int = 1) -> np.ndarray:
    """Sample weights, a zero among them."""
    w = np.random.default_rng(seed).uniform(0.2, 3.0, size).astype(np.float32)
    w[1] = 0.0
    return w


def make_params(key: jax.Array) -> dict[str, jax.Array]:
    """Parameters that depend on the key; cheap to compile, which `jax.random.normal` is not."""
    phase = (jax.random.key_data(key)[-1] % 1000).astype(jnp.float32)
    weight = jnp.sin(phase + jnp.arange(FEATURES * OUTPUTS, dtype=jnp.float32))
    return {"w": weight.reshape(FEATURES, OUTPUTS), "b": jnp.zeros(OUTPUTS)}


def network(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"]) + params["b"]


def squares(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """One loss an example."""
    return jnp.mean((network(params, x) - y) ** 2, axis=-1)


def weighted(params: Any, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.sum(w * squares(params, x, y)) / jnp.sum(w)


class High(eg.ElegyModule):
    def init(self, key, inputs):
        return self.replace(params=make_params(key))

    def apply(self, key, inputs, training):
        return network(self.params, inputs), self


class Managed(eg.ElegyModule):
    def managed_init_step(self, key, batch):
        return self.replace(params=make_params(key))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jnp.mean(squares(self.params, *batch)), self

    def managed_test_step(self, key, batch, batch_idx):
        return self.log("loss", jnp.mean(squares(self.params, *batch)))

    def managed_pred_step(self, key, batch, batch_idx):
        return network(self.params, batch), self


class Core(eg.ElegyModule):
    opt_state: Any = None
    total: Any = 0.0
    count: Any = 0

    def init_step(self, key, batch):
        params = make_params(key)
        return self.replace(
            key=key, params=params, opt_state=TX.init(params), total=jnp.zeros(()), count=jnp.zeros((), jnp.int32)
        )

    def reset_step(self):
        return self.replace(total=jnp.zeros(()), count=jnp.zeros((), jnp.int32))

    def train_step(self, batch, batch_idx, epoch_idx):
        assert isinstance(batch_idx, int)
        assert isinstance(epoch_idx, int)
        return core_train(self, *batch)

    def test_step(self, batch, batch_idx):
        assert isinstance(batch_idx, int)
        return core_test(self, *batch)

    def pred_step(self, batch, batch_idx):
        return network(self.params, batch), self


TX = optax.sgd(0.1, momentum=0.9)


@jax.jit
def core_test(module, x, y):
    total, count = module.total + jnp.sum(squares(module.params, x, y)), module.count + x.shape[0]
    return {"loss": total / count}, module.replace(total=total, count=count)


@jax.jit
def core_train(module, x, y):
    logs, after = core_test(module, x, y)
    grads = jax.grad(lambda p: jnp.mean(squares(p, x, y)))(module.params)
    updates, opt_state = TX.update(grads, module.opt_state, module.params)
    return logs, after.replace(params=optax.apply_updates(module.params, updates), opt_state=opt_state)


def trainer_of(level: type, **kwargs: Any) -> eg.Trainer:
    if level is Core:
        return eg.Trainer(Core(), **kwargs)
    kwargs = {"optimizer": TX, **kwargs}
    if issubclass(level, High):
        kwargs = {"loss": eg.losses.MeanSquaredError(), **kwargs}
    return eg.Trainer(level(), **kwargs)


@jax.jit
def _bare_step(params, state, x, y, w):
    loss, grads = jax.value_and_grad(weighted)(params, x, y, w)
    updates, state = TX.update(grads, state, params)
    return loss, optax.apply_updates(params, updates), state


def bare_loop(
    params: Any,
    x: np.ndarray,
    y: np.ndarray,
    w: np.ndarray | None = None,
    *,
    batch_size: int = 8,
    epochs: int = 3,
    first_epoch: int = 0,
    seed: int = 42,
    shuffle: bool = True,
    drop_remaining: bool = False,
    state: Any = None,
) -> tuple[Any, list[float], Any]:
    """Trains as a JAX user would without any framework: `(params, loss of each epoch, optimizer's state)`."""
    w = np.ones(len(x), np.float32) if w is None else w
    params = jax.tree.map(jnp.asarray, params)
    state = TX.init(params) if state is None else state
    losses = []
    for epoch in range(first_epoch, first_epoch + epochs):
        order = epoch_permutation(seed, epoch, len(x)) if shuffle else np.arange(len(x))
        total = weight = 0.0
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            if drop_remaining and len(rows) < batch_size:
                break
            loss, params, state = _bare_step(params, state, x[rows], y[rows], w[rows])
            total, weight = total + float(loss) * w[rows].sum(), weight + w[rows].sum()
        losses.append(total / weight)
    return params, losses, state


def host(tree: Any) -> list[np.ndarray]:
    """The leaves of a tree as NumPy arrays of one's own; keys as their data."""
    return [
        np.array(
            jax.random.key_data(v)
            if isinstance(v, jax.Array) and jax.dtypes.issubdtype(v.dtype, jax.dtypes.prng_key)
            else v
        )
        for v in jax.tree.leaves(tree)
    ]


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, _), x, y in zip(jax.tree_util.tree_leaves_with_path(a), host(a), host(b), strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@contextmanager
def compilations():
    """Collects the names of the functions that XLA compiles inside of the block."""
    names: list[str] = []

    def listen(event: str, duration: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(kwargs.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Spy(eg.Callback):
    """Calls a function at one hook; declared to read `reads`."""

    def __init__(self, hook: str, function: Callable[[Any], Any], reads: Any = "state"):
        self.batch_hooks_read = reads
        setattr(self, hook, function)
