"""The quick start at the managed level: you write the loss of a batch, Elegy adds gradients and the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    accuracy: eg.metrics.Accuracy = eg.field(default_factory=eg.metrics.Accuracy)

    def managed_init_step(self, key: jax.Array, batch: Any) -> Self:
        images, _ = batch
        return self.replace(params=self.network.init(key, images)["params"])

    def managed_train_step(self, key: jax.Array, batch: Any, batch_idx: Any, epoch_idx: Any) -> tuple[jax.Array, Self]:
        return self.loss_and_logs(batch)

    def managed_test_step(self, key: jax.Array, batch: Any, batch_idx: Any) -> Self:
        loss, module = self.loss_and_logs(batch)
        return module.log("loss", loss)

    def managed_pred_step(self, key: jax.Array, batch: Any, batch_idx: Any) -> tuple[jax.Array, Self]:
        return self.logits(batch).argmax(-1), self

    def logits(self, images: jax.Array) -> jax.Array:
        return self.network.apply({"params": self.params}, images)

    def loss_and_logs(self, batch: Any) -> tuple[jax.Array, Self]:
        images, labels = batch
        logits = self.logits(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        confidence = jnp.max(nn.softmax(logits), axis=-1).mean()
        module = self.log("accuracy", self.accuracy.batch_updates(target=labels, preds=logits))
        return loss, module.log("confidence", confidence)


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
