"""Three workloads, from one that shows the cost of the loop to one that hides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

SEED = 0


class MLP(nn.Module):
    hidden: int = 300
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.classes)(nn.relu(nn.Dense(self.hidden)(x)))


class Conv(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@dataclasses.dataclass(frozen=True)
class Work:
    """A workload: a module with its data.

    Args:
        name: the name in the table.
        module: makes the linen module.
        shape: the shape of one example.
        rows: the number of examples.
        batch_size: the examples of a step.
        epochs: the epochs of one measurement, which should take about a second.
    """

    name: str
    module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: int
    batch_size: int
    epochs: int

    @property
    def steps(self) -> int:
        """The steps of an epoch, including a short last one."""
        return -(-self.rows // self.batch_size)

    def data(self, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs `float32[rows, *shape]` and labels `int32[rows]` of ten clusters."""
        rows = rows or self.rows
        rng = np.random.default_rng(SEED)
        labels = rng.integers(0, 10, rows, dtype=np.int32)
        centers = rng.normal(size=(10, *self.shape)).astype(np.float32)
        return centers[labels] + 2 * rng.standard_normal((rows, *self.shape), dtype=np.float32), labels

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(1e-3)

    def params(self) -> Any:
        """Returns the initial parameters, the same for all frameworks."""
        module = self.module()
        example = np.zeros((1, *self.shape), np.float32)
        return jax.jit(module.init)(jax.random.key(SEED), example)["params"]


WORKS = (
    Work("digits MLP", MLP, (64,), rows=1_792, batch_size=32, epochs=40),
    Work("image MLP", MLP, (784,), rows=60_000, batch_size=64, epochs=1),
    Work("conv", Conv, (28, 28, 1), rows=6_400, batch_size=128, epochs=1),
)
DIGITS, IMAGE, CONV = WORKS
