"""An Equinox module from the command line: `elegy fit examples/cli_diabetes.py --build.layers.width 32`.

`python examples/cli_diabetes.py fit --build.layers.width 32` does the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import elegy as eg


@dataclasses.dataclass(frozen=True)
class Layers:
    """The hidden layers.

    Args:
        width: the units of each.
        depth: how many there are.
    """

    width: int = 16
    depth: int = 2


def build(layers: Layers = Layers(), learning_rate: float = 2e-3) -> tuple[Any, ...]:  # frozen
    """Builds the network.

    Args:
        layers: the hidden layers.
        learning_rate: the learning rate of Adam.
    """
    module = eqx.nn.MLP(10, "scalar", layers.width, layers.depth, key=jax.random.key(0))
    return module, eg.losses.Huber(), eg.metrics.R2(), optax.adam(learning_rate)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Reads how far the diabetes of 442 patients progressed in a year, in hundreds."""
    features, progression = load_diabetes(return_X_y=True)
    return (features * 20).astype(np.float32), (progression / 100).astype(np.float32)


if __name__ == "__main__":
    eg.cli.main(build, data)
