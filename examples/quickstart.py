"""Trains a classifier of handwritten digits: a Flax network, a loss, a metric, an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib
import numpy as np
import optax
from shared import arguments, digits

import elegy as eg

matplotlib.use("Agg")  # figures go to files, so no display is needed
import matplotlib.pyplot as plt  # after the backend is chosen


class MLP(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, training: bool) -> jax.Array:
        x = images.reshape(len(images), -1)
        x = nn.Dropout(0.1, deterministic=not training)(x)
        for features in (512, 256):
            x = nn.relu(nn.Dense(features)(x))
            x = nn.Dropout(0.3, deterministic=not training)(x)
        return nn.Dense(10)(x)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=30, argv=argv)
    (x, y), (x_test, y_test) = digits()

    trainer = eg.Trainer(
        MLP(),
        loss=eg.losses.CrossEntropy(),
        metrics=eg.metrics.Accuracy(),
        optimizer=optax.adam(1e-3),
    )
    trainer.summary(x[:1])
    history = trainer.fit(x, y, batch_size=32, epochs=args.epochs, validation_split=0.1)

    scores = trainer.evaluate(x_test, y_test, verbose=0)
    print(f"on {len(x_test)} digits that were held out: accuracy {scores['accuracy']:.4f}, loss {scores['loss']:.4f}")
    print("figure:", figure(history, x_test, y_test, trainer.predict(x_test), args.output / "quickstart.png"))
    return scores


def figure(history: eg.History, images: np.ndarray, labels: np.ndarray, logits: np.ndarray, path: Path) -> Path:
    """Draws the curves of the run, and 24 predictions: the wrong ones first."""
    predicted = logits.argmax(-1)
    order = np.argsort(predicted == labels, kind="stable")[:24]
    fig = plt.figure(figsize=(12, 7), layout="constrained")
    curves, digits_shown = fig.subfigures(2, 1, height_ratios=(1, 1.1))
    for axes, name in zip(curves.subplots(1, 2), ("loss", "accuracy"), strict=True):
        epochs = np.array(history.epoch) + 1
        axes.plot(epochs, history.history[name], label="training")
        axes.plot(epochs, history.history[f"val_{name}"], label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend()
    digits_shown.suptitle(f"held out: {(predicted != labels).sum()} of {len(labels)} are wrong (in red)")
    for axes, i in zip(digits_shown.subplots(2, 12).flat, order, strict=True):
        right = predicted[i] == labels[i]
        axes.imshow(images[i, ..., 0], cmap="gray_r")
        axes.set_title(f"{predicted[i]}" if right else f"{predicted[i]}, is {labels[i]}", color="k" if right else "r")
        axes.set_axis_off()
    fig.savefig(path, dpi=110)
    plt.close(fig)
    return path


if __name__ == "__main__":
    main()
