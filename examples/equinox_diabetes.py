"""An Equinox module, written for one example as Equinox modules are: how far will diabetes progress in a year?"""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
import optax
from shared import arguments
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import elegy as eg


class Regressor(eqx.Module):
    hidden: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        hidden_key, out_key = jax.random.split(key)
        self.hidden = eqx.nn.Linear(10, 64, key=hidden_key)
        self.dropout = eqx.nn.Dropout(0.2)
        self.out = eqx.nn.Linear(64, "scalar", key=out_key)

    def __call__(self, features: jax.Array, key: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.hidden(features))
        return self.out(self.dropout(x, key=key))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=30, argv=argv)
    features, progression = load_diabetes(return_X_y=True, scaled=False)
    x, x_test, y, y_test = train_test_split(features.astype(np.float32), progression, test_size=0.2, random_state=0)
    mean, scale = x.mean(0), x.std(0)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    y, y_test = ((part / 100).astype(np.float32) for part in (y, y_test))

    trainer = eg.Trainer(
        Regressor(jax.random.key(0)),
        loss=[eg.losses.Huber(), eg.regularizers.L2(1e-3)],
        metrics=[eg.metrics.RootMeanSquareError(), eg.metrics.R2()],
        optimizer=optax.adam(2e-3),
    )
    trainer.fit(x, y, batch_size=32, epochs=args.epochs, validation_data=(x_test, y_test))
    scores = trainer.evaluate(x_test, y_test, verbose=0)
    print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    model = eqx.nn.inference_mode(trainer.state.to_module())
    print(f"one patient: predicted {100 * model(x_test[0]):.0f}, measured {100 * y_test[0]:.0f}")
    return scores


if __name__ == "__main__":
    main()
