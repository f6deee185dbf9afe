"""The reference: the loops that a careful user of bare JAX writes by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.works import SEED, Work
from elegy.data import epoch_permutation


class HandWritten:
    """Trains, evaluates and predicts a workload: `jit` with donated state, NumPy gathers batches, one read an epoch.

    Args:
        work: the workload.
        params: the initial parameters; they are copied, because the first step donates its state.
    """

    def __init__(self, work: Work, params: Any = None):
        self.work = work
        self.module = work.module()
        self.tx = work.optimizer()
        self.params = jax.tree.map(jnp.copy, work.params() if params is None else params)
        self.opt_state = self.tx.init(self.params)
        self.epoch = 0
        self.train_step = jax.jit(self._train_step, donate_argnums=0)
        self.scanned_epoch = jax.jit(self._scanned_epoch, donate_argnums=0)
        self.eval_step = jax.jit(self._eval_step, donate_argnums=1)
        self.pred_step = jax.jit(lambda params, x: self.module.apply({"params": params}, x))

    def _losses(self, params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = self.module.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y), jnp.argmax(logits, -1) == y

    def _train_step(self, state: Any, x: jax.Array, y: jax.Array) -> Any:
        params, opt_state, sums = state

        def objective(params: Any) -> tuple[jax.Array, jax.Array]:
            losses, right = self._losses(params, x, y)
            return losses.mean(), jnp.stack([losses.sum(), right.sum().astype(jnp.float32)])

        (_, seen), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = self.tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, sums + seen

    def _eval_step(self, params: Any, sums: jax.Array, x: jax.Array, y: jax.Array, real: jax.Array) -> jax.Array:
        losses, right = self._losses(params, x, y)
        return sums + jnp.stack([jnp.where(real, losses, 0).sum(), jnp.sum(right & real).astype(jnp.float32)])

    def fit(self, x: np.ndarray, y: np.ndarray, epochs: int) -> list[dict[str, float]]:
        """Trains; returns the loss and the accuracy of each epoch."""
        size, history = self.work.batch_size, []
        for _ in range(epochs):
            order = epoch_permutation(SEED, self.epoch, len(x))
            state = (self.params, self.opt_state, jnp.zeros(2))
            for start in range(0, len(x), size):
                rows = order[start : start + size]
                state = self.train_step(state, x[rows], y[rows])
            self.params, self.opt_state, sums = state
            self.epoch += 1
            loss, accuracy = np.asarray(sums) / len(x)
            history.append({"loss": float(loss), "accuracy": float(accuracy)})
        return history

    def fit_scanned(self, x: jax.Array, y: jax.Array, epochs: int) -> list[dict[str, float]]:
        """Trains on data on the device, a whole epoch in one `lax.scan`, to measure the steps alone.

        An incomplete last batch is left out.
        """
        size, history = self.work.batch_size, []
        steps = len(x) // size
        for _ in range(epochs):
            order = epoch_permutation(SEED, self.epoch, len(x))[: steps * size].reshape(steps, size)
            state = self.scanned_epoch((self.params, self.opt_state, jnp.zeros(2)), x, y, order)
            self.params, self.opt_state, sums = state
            self.epoch += 1
            loss, accuracy = np.asarray(sums) / (steps * size)
            history.append({"loss": float(loss), "accuracy": float(accuracy)})
        return history

    def _scanned_epoch(self, state: Any, x: jax.Array, y: jax.Array, order: jax.Array) -> Any:
        return jax.lax.scan(lambda state, rows: (self._train_step(state, x[rows], y[rows]), None), state, order)[0]

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """Returns loss and accuracy over all rows; the last batch is padded, so that there is one compilation."""
        sums = jnp.zeros(2)
        for batch_x, batch_y, real in self._padded(x, y):
            sums = self.eval_step(self.params, sums, batch_x, batch_y, real)
        loss, accuracy = np.asarray(sums) / len(x)
        return {"loss": float(loss), "accuracy": float(accuracy)}

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns the outputs for all rows, read while the device computes the next batch."""
        outputs, waiting = [], None
        for (batch,) in self._padded(x, mask=False):
            running = self.pred_step(self.params, batch)
            if waiting is not None:
                outputs.append(np.asarray(waiting))
            waiting = running
        outputs.append(np.asarray(waiting))
        return np.concatenate(outputs)[: len(x)]

    def _padded(self, *arrays: np.ndarray, mask: bool = True) -> Any:
        size, rows = self.work.batch_size, len(arrays[0])
        for start in range(0, rows, size):
            parts = [a[start : start + size] for a in arrays]
            real = len(parts[0])
            if real < size:
                parts = [np.pad(p, [(0, size - real)] + [(0, 0)] * (p.ndim - 1)) for p in parts]
            yield (*parts, np.arange(size) < real) if mask else tuple(parts)


def first_state(work: Work, example: np.ndarray) -> Any:
    """Makes parameters and optimizer state in one compiled function."""
    module, tx = work.module(), work.optimizer()

    @partial(jax.jit, static_argnums=())
    def init(key: jax.Array) -> Any:
        params = module.init(key, example)["params"]
        return params, tx.init(params)

    return init(jax.random.key(SEED))
