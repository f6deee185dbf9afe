"""The quick start at the core level: you write and compile every step, Elegy runs the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import optax
from shared import arguments, digits

import elegy as eg


class MLP(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        x = nn.relu(nn.Dense(256)(x))
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


class DigitClassifier(eg.ElegyModule):
    network: MLP = eg.static_field(default=MLP())
    mean_loss: eg.metrics.Mean = eg.field(default_factory=eg.metrics.Mean)
    accuracy: eg.metrics.Accuracy = eg.field(default_factory=eg.metrics.Accuracy)

    @jax.jit
    def init_step(self, key: jax.Array, batch: Any) -> Self:
        images, _ = batch
        params = self.network.init(key, images)["params"]
        return self.replace(key=key, params=params, optimizer=self.optimizer.init(params))

    @jax.jit
    def train_step(self, batch: Any, batch_idx: int, epoch_idx: int) -> tuple[dict[str, jax.Array], Self]:
        (_, module), grads = jax.value_and_grad(self.loss, has_aux=True)(self.params, batch)
        params, optimizer = self.optimizer.update(grads, self.params)
        module = module.replace(params=params, optimizer=optimizer)
        return module.logs(), module

    @jax.jit
    def test_step(self, batch: Any, batch_idx: int) -> tuple[dict[str, jax.Array], Self]:
        _, module = self.loss(self.params, batch)
        return module.logs(), module

    @jax.jit
    def pred_step(self, batch: Any, batch_idx: int) -> tuple[jax.Array, Self]:
        return self.network.apply({"params": self.params}, batch).argmax(-1), self

    def loss(self, params: Any, batch: Any) -> tuple[jax.Array, Self]:
        images, labels = batch
        logits = self.network.apply({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        # The default `reset_step` resets metric fields at the beginning of an epoch.
        module = self.replace(
            mean_loss=self.mean_loss.update(values=losses),
            accuracy=self.accuracy.update(target=labels, preds=logits),
        )
        return losses.mean(), module

    def logs(self) -> dict[str, jax.Array]:
        return {"loss": self.mean_loss.compute(), "accuracy": self.accuracy.compute()}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=20, argv=argv)
    (x, y), (x_test, y_test) = digits()
    trainer = eg.Trainer(DigitClassifier(), optimizer=optax.adam(1e-3))
    trainer.fit(x, y, batch_size=32, epochs=args.epochs, validation_data=(x_test, y_test))
    scores = trainer.evaluate(x_test, y_test, verbose=0)
    print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    print("the first ten digits are", trainer.predict(x_test[:10]), "and should be", y_test[:10])
    return scores


if __name__ == "__main__":
    main()
