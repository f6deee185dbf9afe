"""The strategies, models and data sets whose combinations are compared."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import elegy as eg
from elegy.strategies import FSDP, DataParallel, Sharded

DEVICES = 4
CLASSES = 4
FEATURES = 8

STRATEGIES: dict[str, Callable[[str], Any]] = {
    "jit": lambda model: "jit",
    "eager": lambda model: "eager",
    "data_parallel": lambda model: DataParallel(DEVICES),
    "sharded": lambda model: Sharded({"data": DEVICES}),
    "sharded_rules": lambda model: Sharded({"data": 2, "model": 2}, rules=MODELS[model].rules),
    "fsdp": lambda model: FSDP({"data": DEVICES}, min_size=8),
    "fsdp_rules": lambda model: FSDP({"data": 2, "model": 2}, min_size=8, rules=MODELS[model].rules),
}


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(CLASSES)(nn.tanh(nn.Dense(12)(x)))


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, training: bool = True) -> jax.Array:
        # No bias: batch normalisation leaves it no gradient, and Adam makes steps of the rounding errors.
        x = nn.Conv(4, (3,), use_bias=False)(x[..., None])
        x = nn.BatchNorm(use_running_average=not training, momentum=0.7)(x)
        x = nn.Dropout(0.0, deterministic=not training)(nn.relu(x))
        return nn.Dense(CLASSES)(x.mean(axis=1))


def haiku_net(x: jax.Array) -> jax.Array:
    return hk.Linear(CLASSES, name="head")(jax.nn.tanh(hk.Linear(12)(x)))


class Managed(eg.ElegyModule):
    accuracy: eg.metrics.Accuracy = eg.field(default_factory=eg.metrics.Accuracy)

    def managed_init_step(self, key, batch):
        w = jax.random.normal(key, (FEATURES, CLASSES)) * 0.3
        return self.replace(params={"w": w, "b": jnp.zeros(CLASSES)})

    def forward(self, x):
        return x @ self.params["w"] + self.params["b"]

    def step(self, batch):
        x, y = batch[:2]
        logits = self.forward(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        state = self.log("accuracy", self.accuracy.batch_updates(target=y, preds=logits))
        return loss, state.log("largest", jnp.max(logits), reduce="max").log("mean_logit", jnp.mean(logits))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return self.step(batch)

    def managed_test_step(self, key, batch, batch_idx):
        loss, state = self.step(batch)
        return state.add_loss("loss", loss)

    def managed_pred_step(self, key, batch, batch_idx):
        return self.forward(batch), self


class Model:
    """A module, how it is trained, and its tensor parallelism; nothing touches a device before `trainer` is called."""

    def __init__(
        self,
        make: Callable[[], Any],
        rules: dict[str, tuple],
        options: Callable[[], dict[str, Any]] = dict,
        weights: bool = False,
    ):
        self.make, self.rules, self.options, self.weights = make, rules, options, weights

    def trainer(self, strategy: Any) -> eg.Trainer:
        return eg.Trainer(self.make(), optimizer=optax.adam(1e-2), strategy=strategy, **self.options())


def one_loss() -> dict[str, Any]:
    return {"loss": eg.losses.CrossEntropy(), "metrics": eg.metrics.Accuracy()}


def two_losses() -> dict[str, Any]:
    smooth = eg.losses.CrossEntropy(label_smoothing=0.2, weight=0.5)
    return {"loss": [eg.losses.CrossEntropy(), smooth, eg.regularizers.L2(0.01)], "metrics": [eg.metrics.Accuracy()]}


MODELS = {
    "mlp": Model(MLP, {"Dense_*/kernel": (None, "model")}, one_loss),
    "conv": Model(ConvNet, {"Conv_0/kernel": (None, None, "model")}, one_loss),
    "haiku": Model(lambda: hk.transform(haiku_net), {"linear/w": (None, "model"), "head/w": ("model", None)}, one_loss),
    "managed": Model(Managed, {"params/w": (None, "model")}),
    "weighted": Model(MLP, {"*/kernel": (None, "model")}, two_losses, weights=True),
}

DATA = {"divisible": (16, 8), "not_divisible": (27, 10), "smaller_than_devices": (3, 3)}
"""Examples and batch size of the runs that are compared."""

MANY = (32, 8)


def data(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    size, batch_size = MANY if name == "many" else DATA[name]
    rng = np.random.default_rng(size)
    x = rng.normal(size=(size, FEATURES)).astype(np.float32)
    return x, rng.integers(0, CLASSES, size), rng.uniform(0.1, 2.0, size).astype(np.float32), batch_size


def run(trainer: eg.Trainer, model: Model, dataset: str) -> dict[str, Any]:
    """Two epochs with validation, and predictions: everything that must not depend on the strategy."""
    x, y, weight, batch_size = data(dataset)
    given = {"sample_weight": weight} if model.weights else {}
    validation = (x, y, *given.values())
    history = trainer.fit(x, y, **given, epochs=2, batch_size=batch_size, validation_data=validation, verbose=0)
    return {
        "history": history.history,
        "predict": trainer.predict(x, batch_size=batch_size),
        "params": jax.tree.map(np.asarray, trainer.state.get_params()),
        "batch_stats": jax.tree.map(np.asarray, trainer.state.get_batch_stats()),
    }
