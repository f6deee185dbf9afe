"""A table of patients and five-fold cross-validation: how far will diabetes progress in a year?"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
import optax
from shared import arguments
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

import elegy as eg


class Regressor(nn.Module):
    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.relu(nn.Dense(32)(features)))[:, 0]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=40, argv=argv)
    table = load_diabetes(as_frame=True, scaled=False).frame.astype("float32")  # ten columns, and "target"
    trainer = eg.Trainer(
        Regressor(),
        loss=[eg.losses.Huber(), eg.regularizers.L2(1e-3)],
        metrics=eg.metrics.R2(),
        optimizer=optax.adam(5e-3),
    )
    trainer.init_on_batch(table.drop(columns="target")[:1], table["target"][:1])
    beginning = trainer.state

    scores, predicted = [], np.zeros(len(table), np.float32)
    for train, test in KFold(5, shuffle=True, random_state=0).split(table):
        # Each fold begins with the same parameters; the steps that the first fold compiled serve the others.
        trainer.state, trainer.step, trainer.epoch = beginning, 0, 0
        mean, scale = table.iloc[train].mean(), table.iloc[train].std()
        scaled = (table - mean) / scale
        trainer.fit(scaled.iloc[train], labels="target", batch_size=32, epochs=args.epochs, verbose=0)
        scores.append(trainer.evaluate(scaled.iloc[test], labels="target", verbose=0)["r2"])
        outputs = trainer.predict(scaled.iloc[test], labels="target")  # without the column
        predicted[test] = outputs * scale["target"] + mean["target"]

    r2 = r2_score(table["target"], predicted)
    print("R2 of the folds:", ", ".join(f"{score:.3f}" for score in scores))
    print(f"R2 of all patients, each predicted by a model that did not see them: {r2:.3f}")
    return {"r2": r2, "worst_fold": min(scores), "best_fold": max(scores)}


if __name__ == "__main__":
    main()
