"""A generative adversarial network at the core level: two networks, two optimizers, one step of your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

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

LATENT = 16


class Generator(nn.Module):
    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.relu(nn.LayerNorm()(nn.Dense(128)(z)))
        x = nn.relu(nn.LayerNorm()(nn.Dense(128)(x)))
        return nn.sigmoid(nn.Dense(64)(x)).reshape(-1, 8, 8, 1)


class Discriminator(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        x = nn.leaky_relu(nn.Dense(128)(x), 0.2)
        x = nn.leaky_relu(nn.Dense(128)(x), 0.2)
        return nn.Dense(1)(x)[:, 0]


def adversarial_optimizer(learning_rate: float) -> eg.Optimizer:
    return eg.Optimizer(optax.adam(learning_rate, b1=0.5))


class GAN(eg.ElegyModule):
    generator: Generator = eg.static_field(default=Generator())
    discriminator: Discriminator = eg.static_field(default=Discriminator())
    generator_params: Any = None
    discriminator_params: Any = None
    generator_optimizer: eg.Optimizer = eg.field(default_factory=lambda: adversarial_optimizer(5e-4))
    discriminator_optimizer: eg.Optimizer = eg.field(default_factory=lambda: adversarial_optimizer(5e-4))
    generator_loss: eg.metrics.Mean = eg.field(default_factory=eg.metrics.Mean)
    discriminator_loss: eg.metrics.Mean = eg.field(default_factory=eg.metrics.Mean)

    @jax.jit
    def init_step(self, key: jax.Array, batch: jax.Array) -> Self:
        key, generator_key, discriminator_key = jax.random.split(key, 3)
        generator_params = self.generator.init(generator_key, jnp.zeros((1, LATENT)))
        discriminator_params = self.discriminator.init(discriminator_key, batch)
        return self.replace(
            key=key,
            generator_params=generator_params,
            discriminator_params=discriminator_params,
            generator_optimizer=self.generator_optimizer.init(generator_params),
            discriminator_optimizer=self.discriminator_optimizer.init(discriminator_params),
        )

    @jax.jit
    def train_step(self, batch: jax.Array, batch_idx: int, epoch_idx: int) -> tuple[dict[str, jax.Array], Self]:
        key, discriminator_key, generator_key = jax.random.split(self.key, 3)
        module = self.replace(key=key)
        module = module.train_discriminator(discriminator_key, batch)
        module = module.train_generator(generator_key, len(batch))
        logs = {
            "generator_loss": module.generator_loss.compute(),
            "discriminator_loss": module.discriminator_loss.compute(),
        }
        return logs, module

    @jax.jit
    def pred_step(self, batch: jax.Array, batch_idx: int) -> tuple[jax.Array, Self]:
        return self.generator.apply(self.generator_params, batch), self

    def train_discriminator(self, key: jax.Array, real: jax.Array) -> Self:
        fake = self.generator.apply(self.generator_params, jax.random.normal(key, (len(real), LATENT)))

        def loss(params: Any) -> jax.Array:
            # Labels of 0.9 for real images (one-sided label smoothing) keep the gradients of the generator useful.
            of_real = optax.sigmoid_binary_cross_entropy(self.discriminator.apply(params, real), 0.9)
            of_fake = optax.sigmoid_binary_cross_entropy(self.discriminator.apply(params, fake), 0.0)
            return (of_real + of_fake).mean()

        value, grads = jax.value_and_grad(loss)(self.discriminator_params)
        params, optimizer = self.discriminator_optimizer.update(grads, self.discriminator_params)
        return self.replace(
            discriminator_params=params,
            discriminator_optimizer=optimizer,
            discriminator_loss=self.discriminator_loss.update(values=value),
        )

    def train_generator(self, key: jax.Array, count: int) -> Self:
        z = jax.random.normal(key, (count, LATENT))

        def loss(params: Any) -> jax.Array:
            fake = self.generator.apply(params, z)
            logits = self.discriminator.apply(self.discriminator_params, fake)
            return optax.sigmoid_binary_cross_entropy(logits, 1.0).mean()

        value, grads = jax.value_and_grad(loss)(self.generator_params)
        params, optimizer = self.generator_optimizer.update(grads, self.generator_params)
        return self.replace(
            generator_params=params,
            generator_optimizer=optimizer,
            generator_loss=self.generator_loss.update(values=value),
        )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=150, argv=argv)
    (x, _), _ = digits()
    trainer = eg.Trainer(GAN())
    history = trainer.fit(x, batch_size=64, epochs=args.epochs, drop_remaining=True, verbose=2)
    latent = np.asarray(jax.random.normal(jax.random.key(1), (48, LATENT)))
    print("figure:", figure(history, trainer.predict(latent), args.output / "gan.png"))
    return {name: values[-1] for name, values in history.history.items()}


def figure(history: eg.History, images: np.ndarray, path: Path) -> Path:
    """Draws the two losses, and 48 generated digits."""
    fig = plt.figure(figsize=(12, 4), layout="constrained")
    left, right = fig.subfigures(1, 2)
    axes = left.subplots()
    for name, values in history.history.items():
        axes.plot(np.array(history.epoch) + 1, values, label=name.replace("_", " "))
    axes.set(xlabel="epoch")
    axes.legend()
    for axes, image in zip(right.subplots(6, 8).flat, images, strict=True):
        axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
    fig.savefig(path, dpi=110)
    plt.close(fig)
    return path


if __name__ == "__main__":
    main()
