"""Fine-tuning a pretrained network from a safetensors file with low-rank adapters (LoRA).

The base learns to tell the digits 0 to 4, and is written in PyTorch's names and axes, as weights from elsewhere are.
Then adapters and a new head learn the digits 5 to 9, of which there are few examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
import optax
from shared import Split, arguments, digits

import elegy as eg

# PyTorch's Linear keeps its weight as (out, in).
TABLE = {
    "names": {"layers.*.weight": "params/layers_*/kernel", "layers.*.bias": "params/layers_*/bias"},
    "transpose": {"*/kernel": (1, 0)},
}


class Net(nn.Module):
    """Two hidden layers, and a head for five digits."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape((images.shape[0], -1))
        for index in range(2):
            x = nn.relu(nn.Dense(128, name=f"layers_{index}")(x))
        return nn.Dense(5, name="head")(x)


def trainer_of(module: object, learning_rate: float) -> eg.Trainer:
    return eg.Trainer(module, eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.adam(learning_rate))


def part(split: Split, first: int) -> Split:
    """Returns the examples of five digits, with labels from 0."""
    images, labels = split
    chosen = (labels >= first) & (labels < first + 5)
    return images[chosen], labels[chosen] - first


def count(tree: object) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=20, argv=argv)
    train, test = digits()
    file = args.output / "base.safetensors"

    base = trainer_of(Net(), 1e-3)
    base.fit(*part(train, 0), epochs=args.epochs, verbose=2)
    eg.weights.save(file, base, keep="params/head/*", **TABLE)

    few, few_labels = (array[:150] for array in part(train, 5))
    variables = eg.weights.load(file, Net(), few[:1], keep="params/head/*", **TABLE)  # a head of its own
    tuned = trainer_of(eg.LoRA(Net(), "layers_*/kernel", rank=4, alpha=8, train="head/*", variables=variables), 1e-2)
    tuned.fit(few, few_labels, epochs=args.epochs, verbose=2)
    scores = tuned.evaluate(*part(test, 5), verbose=0)
    print(
        f"accuracy {scores['accuracy']:.3f}, trained {count(tuned.state.params):,} of {count(variables):,} parameters"
    )

    merged = trainer_of(tuned.state.merge(), 1e-2)  # without adapters, the same predictions
    difference = np.abs(merged.predict(part(test, 5)[0]) - tuned.predict(part(test, 5)[0])).max()
    eg.weights.save(args.output / "tuned.safetensors", merged, keep="params/head/*", **TABLE)
    return {**scores, "difference": float(difference)}


if __name__ == "__main__":
    main()
