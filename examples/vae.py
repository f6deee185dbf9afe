"""A variational autoencoder of handwritten digits at the managed level: two losses, and new digits at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from shared import arguments, digits

import elegy as eg

matplotlib.use("Agg")  # figures go to files, so no display is needed
import matplotlib.pyplot as plt  # after the backend is chosen

LATENT = 8
PIXEL_VARIANCE = 0.03  # the variance of a pixel in the decoder's distribution; smaller gives sharper images


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu(nn.Dense(256)(images.reshape(len(images), -1)))
        return nn.Dense(LATENT)(x), nn.Dense(LATENT)(x)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.Dense(64)(nn.relu(nn.Dense(256)(z)))
        return nn.sigmoid(x).reshape(-1, 8, 8, 1)


class Output(NamedTuple):
    images: jax.Array
    mean: jax.Array
    log_variance: jax.Array


class VAE(eg.ElegyModule):
    encoder: Encoder = eg.static_field(default=Encoder())
    decoder: Decoder = eg.static_field(default=Decoder())

    def managed_init_step(self, key: jax.Array, batch: Any) -> Self:
        encoder_key, decoder_key = jax.random.split(key)
        return self.replace(
            params={
                "encoder": self.encoder.init(encoder_key, batch)["params"],
                "decoder": self.decoder.init(decoder_key, jnp.zeros((1, LATENT)))["params"],
            }
        )

    def managed_train_step(self, key: jax.Array, batch: Any, batch_idx: Any, epoch_idx: Any) -> tuple[jax.Array, Self]:
        return self.loss(key, batch)

    def managed_test_step(self, key: jax.Array, batch: Any, batch_idx: Any) -> Self:
        total, module = self.loss(key, batch)
        return module.log("loss", total)

    def managed_pred_step(self, key: jax.Array, batch: Any, batch_idx: Any) -> tuple[jax.Array, Self]:
        return self.reconstruct(key, batch).images, self

    def loss(self, key: jax.Array, images: jax.Array) -> tuple[jax.Array, Self]:
        """The negative evidence lower bound in nats (up to a constant), and the module with its parts logged."""
        out = self.reconstruct(key, images)
        reconstruction = ((out.images - images) ** 2).sum((1, 2, 3)).mean() / (2 * PIXEL_VARIANCE)
        divergence = 0.5 * (jnp.exp(out.log_variance) + out.mean**2 - 1 - out.log_variance).sum(-1).mean()
        return reconstruction + divergence, self.log("reconstruction", reconstruction).log("kl", divergence)

    def reconstruct(self, key: jax.Array, images: jax.Array) -> Output:
        mean, log_variance = self.encoder.apply({"params": self.params["encoder"]}, images)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        return Output(self.decode(z), mean, log_variance)

    def decode(self, z: jax.Array) -> jax.Array:
        return self.decoder.apply({"params": self.params["decoder"]}, z)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=100, argv=argv)
    (x, _), (x_test, _) = digits()
    trainer = eg.Trainer(VAE(), optimizer=optax.adam(2e-3))
    trainer.fit(x, batch_size=64, epochs=args.epochs, validation_data=x_test)
    scores = trainer.evaluate(x_test, batch_size=64, verbose=0)
    print(", ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    sampled = trainer.state.decode(jax.random.normal(jax.random.key(0), (12, LATENT)))
    print("figure:", figure(x_test[:12], trainer.predict(x_test[:12]), np.asarray(sampled), args.output / "vae.png"))
    return scores


def figure(images: np.ndarray, reconstructed: np.ndarray, sampled: np.ndarray, path: Path) -> Path:
    """Draws a row of test digits, one of their reconstructions, and one of sampled digits."""
    fig, rows = plt.subplots(3, 12, figsize=(12, 3.6), layout="constrained")
    titles = ("held out", "reconstructed", "sampled")
    for row, title, pictures in zip(rows, titles, (images, reconstructed, sampled), strict=True):
        row[0].set_title(title, loc="left")
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture[..., 0], cmap="gray_r", vmin=0, vmax=1)
            axes.set_axis_off()
    fig.savefig(path, dpi=110)
    plt.close(fig)
    return path


if __name__ == "__main__":
    main()
