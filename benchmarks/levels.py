"""The cost of levels and adapters: managed level and Haiku against linen, digits MLP."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import optax

import elegy as eg
from benchmarks.options import Options
from benchmarks.ours import fit, trainer_for
from benchmarks.pairs import Row, measure
from benchmarks.works import DIGITS, MLP, SEED, Work

GOAL = 1.05


class ManagedMLP(eg.ElegyModule):
    """The digits MLP at the managed level, with its own loss and accuracy."""

    accuracy: eg.metrics.Accuracy = eg.field(default_factory=eg.metrics.Accuracy)

    def managed_init_step(self, key: jax.Array, batch: Any) -> ManagedMLP:
        return self.replace(params=MLP().init(key, batch[0])["params"])

    def managed_train_step(self, key: jax.Array, batch: Any, batch_idx: Any, epoch_idx: Any) -> Any:
        x, y = batch
        logits = MLP().apply({"params": self.params}, x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, self.log("accuracy", self.accuracy.batch_updates(target=y, preds=logits))


def haiku_mlp() -> hk.Transformed:
    """The digits MLP in Haiku."""

    def forward(x: jax.Array) -> jax.Array:
        return hk.Linear(10)(jax.nn.relu(hk.Linear(300)(x)))

    return hk.transform(forward)


def run(options: Options) -> list[Row]:
    """One line for the managed level, and one for Haiku."""
    work = options.sized(DIGITS)
    data = work.data()
    managed = eg.Trainer(ManagedMLP(), optimizer=work.optimizer(), seed=SEED)
    others = {"managed level": managed, "Haiku adapter": trainer_for(work, haiku_mlp())}
    return [compare(name, trainer, work, data, options.repeats) for name, trainer in others.items()]


def compare(name: str, trainer: eg.Trainer, work: Work, data: Any, pairs: int) -> Row:
    """Compares a trainer with that of the linen module."""
    linen = trainer_for(work)
    return measure(
        f"{work.name}, {name}",
        lambda: fit(trainer, work, data),
        lambda: fit(linen, work, data),
        pairs=pairs,
        per=work.steps * work.epochs,
        other="linen",
        goal=GOAL,
    )
