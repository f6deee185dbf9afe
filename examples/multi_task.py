"""Two tasks with dicts of inputs and outputs: from the upper half of a digit to its class and its lower half."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
import optax
from shared import arguments, digits

import elegy as eg


class HalfDigit(nn.Module):
    """The keys of the inputs are the names of the arguments; those of the outputs, the names of the tasks."""

    @nn.compact
    def __call__(self, upper: jax.Array, ink: jax.Array, training: bool) -> dict[str, jax.Array]:
        x = nn.relu(nn.Dense(128)(upper.reshape(len(upper), -1)) + nn.Dense(128)(ink[:, None]))
        x = nn.Dropout(0.2, deterministic=not training)(nn.relu(nn.Dense(128)(x)))
        return {"digit": nn.Dense(10)(x), "lower": nn.sigmoid(nn.Dense(32)(x))}


def tasks(images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns inputs, the upper halves and the mean brightness of whole images, and targets, by task."""
    flat = images.reshape(len(images), -1)
    return {"upper": images[:, :4], "ink": flat.mean(1)}, {"digit": labels, "lower": flat[:, 32:]}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=40, argv=argv)
    (images, labels), (images_test, labels_test) = digits()
    x, y = tasks(images, labels)
    x_test, y_test = tasks(images_test, labels_test)
    # Two thirds of the digits have no class. Their lower halves still teach the layers that both tasks share.
    known = (np.arange(len(labels)) % 3 == 0).astype(np.float32)
    trainer = eg.Trainer(
        HalfDigit(),
        loss={"digit": eg.losses.CrossEntropy(), "lower": eg.losses.MeanSquaredError(weight=20.0)},
        metrics={"digit": eg.metrics.Accuracy(), "lower": eg.metrics.MeanAbsoluteError()},
        optimizer=optax.adam(2e-3),
    )
    trainer.summary({name: array[:1] for name, array in x.items()})
    trainer.fit(
        x,
        y,
        sample_weight={"digit": known},  # every example has weight 1 in the other task
        batch_size=64,
        epochs=args.epochs,
        validation_data=(x_test, y_test),
        verbose=2,
    )
    scores = trainer.evaluate(x_test, y_test, verbose=0)
    guess = np.abs(y_test["lower"] - y["lower"].mean(0)).mean()  # of the mean image
    print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()), f"(mean image: {guess:.4f})")
    return scores


if __name__ == "__main__":
    main()
