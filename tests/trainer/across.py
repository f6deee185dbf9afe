"""Runs that are saved in the middle of an epoch on some devices and go on with others.

As a script it is one of two processes with two devices each: `python across.py PORT PROCESS FOLDER`.
"""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

import elegy as eg
from elegy.checkpoint import checkpoint_name, flatten
from elegy.strategies import FSDP, DataParallel

SIZE, BATCH, STEPS, EPOCHS, SAVED_AT = 27, 8, 4, 2, 6
WIDTH = 16

ALONE: dict[str, Callable[[], Any]] = {"jit": lambda: "jit"}
for n in (1, 2, 4, 8):
    ALONE[f"data_parallel on {n}"] = lambda n=n: DataParallel(n)
    ALONE[f"fsdp on {n}"] = lambda n=n: FSDP({"data": n}, min_size=8)
PAIR: dict[str, Callable[[], Any]] = {
    "data_parallel on 2 x 2": DataParallel,
    "fsdp on 2 x 2": lambda: FSDP(min_size=8),
}


class Net(eg.ElegyModule):
    """Two layers whose arrays 2, 4 and 8 devices divide."""

    def init(self, key, inputs):
        one, two = jax.random.split(key)
        params = {"in": jax.random.normal(one, (8, WIDTH)) / 3, "out": jax.random.normal(two, (WIDTH, 2)) / 4}
        return self.replace(params=params)

    def apply(self, key, inputs, training):
        return jnp.tanh(inputs["x"] @ self.params["in"]) @ self.params["out"], self


class Seen(eg.metrics.Metric):
    """How often each example was seen in the epoch; rows of weight 0 are padding."""

    counts: jax.Array = eg.field(default_factory=lambda: jnp.zeros(SIZE, jnp.int32))

    def update(self, inputs, sample_weight=None):
        rows = jnp.ones(inputs["id"].shape) if sample_weight is None else sample_weight
        return self.replace(counts=self.counts.at[inputs["id"]].add((rows > 0).astype(jnp.int32)))

    def compute(self):
        return jnp.max(self.counts)


def data() -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE, 8)).astype(np.float32)
    return {"x": x, "id": np.arange(SIZE, dtype=np.int32)}, rng.normal(size=(SIZE, 2)).astype(np.float32)


def trainer_on(strategy: Any) -> eg.Trainer:
    return eg.Trainer(
        Net(),
        loss=eg.losses.MeanSquaredError(),
        metrics=[eg.metrics.MeanAbsoluteError(), Seen()],
        optimizer=optax.adam(0.01),
        strategy=strategy,
    )


def fit(trainer: eg.Trainer, **kwargs: Any) -> dict[str, list[float]]:
    return trainer.fit(*data(), batch_size=BATCH, epochs=EPOCHS, verbose=0, **kwargs).history


def values(trainer: eg.Trainer) -> dict[str, Any]:
    """Everything a checkpoint must bring back, on the host: the whole state by path, and the counters."""
    keys = jax.dtypes.prng_key
    raw = {
        path: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, keys) else leaf
        for path, leaf in flatten(trainer.state).items()
    }
    counters = {"step": trainer.step, "epoch": trainer.epoch, "history": copy.deepcopy(trainer.history.history)}
    return {**counters, **trainer.strategy.collect_outputs(raw)}


class Note(eg.Callback):
    """Keeps the values of the step that is saved."""

    batch_hooks_read = "state"

    def on_train_batch_end(self, event):
        if event.step == SAVED_AT:
            self.values = values(event.trainer)


def save(folder: Path, name: str, strategy: Any) -> None:
    """Trains to the end, and leaves a checkpoint of the middle, what it must hold, and how the run ended."""
    note = Note()
    saver = eg.callbacks.ModelCheckpoint(folder / name, save_top_k=-1, every=eg.Every(steps=SAVED_AT))
    trainer = trainer_on(strategy)
    fit(trainer, callbacks=[note, saver])
    ended = values(trainer)  # by all processes together
    if eg.distributed.is_first():
        (folder / f"{name}.pickle").write_bytes(pickle.dumps((note.values, ended)))


def assert_same(one: Any, other: Any, what: str) -> None:
    if isinstance(other, np.ndarray):
        np.testing.assert_array_equal(one, other, err_msg=what, strict=True)
    else:
        assert one == other, what


def check(trainer: eg.Trainer, folder: Path, names: Iterable[str]) -> None:
    """Restores each checkpoint on the trainer's devices, and ends its run there."""
    trainer.init_on_batch(*data())
    places = {path: leaf.sharding for path, leaf in flatten(trainer.state).items()}
    for name in names:
        saved, ended = pickle.loads((folder / f"{name}.pickle").read_bytes())
        middle = folder / name / checkpoint_name(SAVED_AT)
        trainer.restore(middle)
        found = values(trainer)
        assert found.keys() == saved.keys(), name
        for path, value in saved.items():
            assert_same(found[path], value, f"{name}: {path}")
        for path, leaf in flatten(trainer.state).items():
            assert leaf.sharding.is_equivalent_to(places[path], leaf.ndim), f"{name}: {path}"
        fit(trainer, resume=middle)
        found = values(trainer)
        assert (trainer.step, trainer.epoch) == (EPOCHS * STEPS, EPOCHS)
        (counts,) = (value for path, value in found.items() if path.endswith("counts"))
        np.testing.assert_array_equal(counts, np.ones(SIZE), err_msg=name)
        for path, value in ended.items():
            # Sums over devices are taken in another order; Adam divides small gradients by small roots of squares.
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found[path], value)


def main() -> None:
    warnings.simplefilter("error")
    # The other process writes entries of the cache in place, and this one may read half of one.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    jax.config.update("jax_num_cpu_devices", 2)
    port, process, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    eg.distributed.initialize(f"127.0.0.1:{port}", 2, process, initialization_timeout=300, heartbeat_timeout=100)
    for name, strategy in PAIR.items():
        save(folder, name, strategy())
    multihost_utils.sync_global_devices("saved")
    for strategy in PAIR.values():
        check(trainer_on(strategy()), folder, [*ALONE, *PAIR])


if __name__ == "__main__":
    main()
