"""A Haiku network that reads a digit row by row, from its top to its bottom."""

from __future__ import annotations

from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from shared import arguments, digits

import elegy as eg


def network(images: jax.Array, is_training: bool) -> jax.Array:
    rows = images[..., 0].swapaxes(0, 1)  # time comes first
    cell = hk.GRU(64)
    _, state = hk.dynamic_unroll(cell, rows, cell.initial_state(rows.shape[1]))
    state = hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(jnp.asarray(state))
    if is_training:
        state = hk.dropout(hk.next_rng_key(), 0.2, state)
    return hk.Linear(10)(state)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=20, argv=argv)
    (x, y), (x_test, y_test) = digits()
    trainer = eg.Trainer(
        hk.transform(network),
        loss=eg.losses.CrossEntropy(),
        metrics=[eg.metrics.Accuracy(), eg.metrics.F1(average="macro", num_classes=10)],
        optimizer=optax.adam(3e-3),
    )
    trainer.fit(x, y, batch_size=32, epochs=args.epochs, validation_data=(x_test, y_test))
    scores = trainer.evaluate(x_test, y_test, verbose=0)
    print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    return scores


if __name__ == "__main__":
    main()
