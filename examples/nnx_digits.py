"""A Flax NNX module: it is trained as a pure state, then the trained values are written to your object."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import optax
from flax import nnx
from shared import arguments, digits

import elegy as eg


class MLP(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 256, rngs=rngs)
        self.norm = nnx.BatchNorm(256, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(len(images), -1)
        x = nnx.relu(self.norm(self.hidden(x)))
        return self.out(self.dropout(x))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=20, argv=argv)
    (x, y), (x_test, y_test) = digits()
    model = MLP(rngs=nnx.Rngs(0))
    trainer = eg.Trainer(
        model,
        loss=eg.losses.CrossEntropy(),
        metrics=eg.metrics.Accuracy(),
        optimizer=optax.adamw(1e-3),
    )
    trainer.fit(x, y, batch_size=32, epochs=args.epochs, validation_data=(x_test, y_test))
    scores = trainer.evaluate(x_test, y_test, verbose=0)
    print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    trainer.state.update(model)
    model.eval()
    correct = np.asarray(model(x_test)).argmax(-1) == y_test
    print(f"the module itself gets {correct.mean():.4f} right")
    return scores


if __name__ == "__main__":
    main()
