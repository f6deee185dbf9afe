"""Handwritten digits from the command line: `elegy fit examples/cli_digits.py --build.width 128 --fit.epochs 10`.

`python examples/cli_digits.py fit --fit.epochs 10` does the same.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import optax
from shared import digits

import elegy as eg


class MLP(nn.Module):
    width: int
    dropout: float

    @nn.compact
    def __call__(self, images: jax.Array, training: bool) -> jax.Array:
        x = nn.Dense(self.width, use_bias=False)(images.reshape(images.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not training, momentum=0.9)(x))
        x = nn.Dropout(self.dropout, deterministic=not training)(x)
        return nn.Dense(10)(x)


def build(width: int = 64, dropout: float = 0.2) -> dict[str, Any]:
    """Builds the network.

    Args:
        width: the units of the hidden layer.
        dropout: the fraction of them that a training step drops.
    """
    return {"module": MLP(width, dropout), "loss": eg.losses.CrossEntropy(), "metrics": eg.metrics.Accuracy()}


def optimizer(learning_rate: float = 1e-3, kind: Literal["adam", "sgd"] = "adam") -> optax.GradientTransformation:
    """Makes the optimizer.

    Args:
        learning_rate: the learning rate.
        kind: Adam, or plain gradient descent.
    """
    return {"adam": optax.adam, "sgd": optax.sgd}[kind](learning_rate)


def data(rows: int | None = None) -> dict[str, Any]:
    """Reads the digits.

    Args:
        rows: how many to train on; null for all.
    """
    (x, y), test = digits()
    return {"inputs": x[:rows], "labels": y[:rows], "validation_data": test}


if __name__ == "__main__":
    eg.cli.main(build, data, optimizer)
