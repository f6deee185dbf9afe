"""A convolutional Flax network with batch normalisation and dropout: its statistics are part of the state."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import optax
from shared import arguments, digits

import elegy as eg


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, training: bool) -> jax.Array:
        x = images
        for features in (16, 32):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not training, momentum=0.9)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = nn.Dropout(0.3, deterministic=not training)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    args = arguments(__doc__, epochs=15, argv=argv)
    (x, y), (x_test, y_test) = digits()
    steps = args.epochs * -(-len(x) // 32)
    trainer = eg.Trainer(
        ConvNet(),
        loss=[eg.losses.CrossEntropy(label_smoothing=0.1), eg.regularizers.L2(1e-4)],
        metrics=eg.metrics.Accuracy(),
        optimizer=optax.adam(optax.cosine_decay_schedule(5e-3, steps)),
    )
    trainer.summary(x[:1])
    stop = eg.callbacks.EarlyStopping("val_accuracy", patience=8, restore_best_weights=True)
    trainer.fit(x, y, batch_size=32, epochs=args.epochs, validation_split=0.1, callbacks=[stop])

    # The running statistics of batch normalisation are state that is updated without gradients.
    means = jax.tree.map(lambda statistic: round(float(statistic.mean()), 3), trainer.state.batch_stats)
    print("running statistics, averaged over the channels:", means)
    scores = trainer.evaluate(x_test, y_test, verbose=0)
    print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    return scores


if __name__ == "__main__":
    main()
