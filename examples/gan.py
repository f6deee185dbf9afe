"""A generative adversarial network at the managed level: two losses, each with its own parameters and optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import flax.linen as nn
import jax
import matplotlib
import numpy as np
import optax
from shared import arguments, digits

import elegy as eg

matplotlib.use("Agg")  # figures go to files, so no display is needed
import matplotlib.pyplot as plt  # after the backend is chosen

LATENT = 16


def leaky_relu(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2)


GENERATOR = nn.Sequential(
    [nn.Dense(128), nn.LayerNorm(), nn.relu, nn.Dense(128), nn.LayerNorm(), nn.relu, nn.Dense(64), nn.sigmoid]
)
DISCRIMINATOR = nn.Sequential([nn.Dense(128), leaky_relu, nn.Dense(128), leaky_relu, nn.Dense(1)])


class GAN(eg.ElegyModule):
    def managed_init_step(self, key: jax.Array, batch: jax.Array) -> Self:
        keys = jax.random.split(key)
        generator = GENERATOR.init(keys[0], np.zeros((1, LATENT), np.float32))
        return self.replace(params={"generator": generator, "discriminator": DISCRIMINATOR.init(keys[1], batch)})

    def managed_train_step(
        self, key: jax.Array, real: jax.Array, batch_idx: jax.Array, epoch_idx: jax.Array
    ) -> tuple[dict[str, jax.Array], Self]:
        fake = GENERATOR.apply(self.params["generator"], jax.random.normal(key, (len(real), LATENT)))
        of_real, of_fake = (DISCRIMINATOR.apply(self.params["discriminator"], images) for images in (real, fake))
        cross_entropy = optax.sigmoid_binary_cross_entropy
        # Labels of 0.9 for real images (one-sided label smoothing) keep the gradients of the generator useful.
        discriminator = (cross_entropy(of_real, 0.9) + cross_entropy(of_fake, 0.0)).mean()
        return {"generator": cross_entropy(of_fake, 1.0).mean(), "discriminator": discriminator}, self

    def managed_pred_step(self, key: jax.Array, z: jax.Array, batch_idx: jax.Array) -> tuple[jax.Array, Self]:
        return GENERATOR.apply(self.params["generator"], z), self


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=150, argv=argv)
    x = digits()[0][0].reshape(-1, 64)
    optimizers = {f"{network}/*": optax.adam(5e-4, b1=0.5) for network in ("generator", "discriminator")}
    trainer = eg.Trainer(GAN(), optimizer=optimizers)
    history = trainer.fit(x, batch_size=64, epochs=args.epochs, drop_remaining=True, verbose=2)
    images = trainer.predict(np.random.default_rng(1).normal(size=(48, LATENT)).astype(np.float32))
    figure(history.history, images.reshape(6, 8, 8, 8), args.output / "gan.png")
    return {name: values[-1] for name, values in history.history.items()}


def figure(history: dict[str, list[float]], images: np.ndarray, path: Path) -> None:
    """Draws the two losses, and 48 generated digits."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    for name in ("generator_loss", "discriminator_loss"):
        left.plot(history[name], label=name.replace("_", " "))
    left.set(xlabel="epoch")
    left.legend()
    right.imshow(np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))).transpose(0, 2, 1, 3).reshape(60, 80), cmap="gray_r")
    right.set_axis_off()
    fig.savefig(path, dpi=110)
    plt.close(fig)


if __name__ == "__main__":
    main()
