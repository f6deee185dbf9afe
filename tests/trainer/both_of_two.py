"""What each of two processes runs for `test_two_processes.py`: `python both_of_two.py PORT PROCESS RESULTS`."""

import contextlib
import pickle
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax

import elegy as eg

rng = np.random.default_rng(0)
X = rng.normal(size=(48, 6)).astype(np.float32)
Y = (X @ rng.normal(size=(6, 2)) + 0.1).astype(np.float32)
GIVEN = {"params": {"Dense_0": {"kernel": rng.normal(size=(6, 2)).astype(np.float32), "bias": np.zeros(2, np.float32)}}}


class Line(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not training)(nn.Dense(4)(x)))


def on_host(tree):
    """The whole arrays of a tree, in all processes."""
    return jax.tree.map(lambda leaf: np.asarray(eg.distributed.collect(leaf)), tree)


def run_folders(strategy, folder):
    """A run that fails and is resumed, one that is not interrupted, and one that begins anew."""

    def made(run_dir):
        options = {"strategy": strategy, "run_dir": run_dir}
        return eg.Trainer(Line(), eg.losses.MeanSquaredError(), None, optax.adam(0.1), **options)

    def fit(trainer, **options):
        trainer.fit(X, Y, batch_size=8, epochs=3, verbose=0, **options)
        return trainer

    def fails(event):
        if event.epoch == 2:
            raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError):
        fit(made(folder / "run"), callbacks=[eg.callbacks.LambdaCallback(on_epoch_begin=fails)])
    resumed, whole, anew = (
        fit(made(folder / "run"), resume="auto"),
        fit(made(folder / "whole")),
        fit(made(folder / "run")),
    )
    jax.tree.map(np.testing.assert_array_equal, on_host(resumed.state.params), on_host(whole.state.params))
    assert resumed.history.history == whole.history.history
    return [trainer.run_dir.name for trainer in (resumed, whole, anew)]


def low_rank(strategy, folder):
    """Trained, saved and restored adapters."""

    def made():
        lora = eg.LoRA(Line(), "*/kernel", rank=1, variables=GIVEN)
        return eg.Trainer(lora, eg.losses.MeanSquaredError(), None, optax.adam(0.1), strategy=strategy)

    trainer, other = made(), made()
    trainer.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    trainer.save(folder / "lora")
    other.init_on_batch(X[:8], Y[:8])
    other.restore(folder / "lora")
    np.testing.assert_array_equal(other.predict(X, batch_size=8), trainer.predict(X, batch_size=8))
    return trainer.predict(X, batch_size=8)


def statistics(strategy, folder):
    """Statistics of averaged parameters, which several processes do not compute."""
    options = {"strategy": strategy, "averaging": eg.SWA()}
    trainer = eg.Trainer(Normalised(), eg.losses.MeanSquaredError(), None, optax.sgd(0.1), **options)
    trainer.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    before = on_host(trainer.state.batch_stats)
    try:
        trainer.update_batch_stats(X, batch_size=8)
    except RuntimeError as error:
        jax.tree.map(np.testing.assert_array_equal, on_host(trainer.state.batch_stats), before)
        return str(error)


PARTS = {"low_rank": low_rank, "run_folders": run_folders, "statistics": statistics}


if __name__ == "__main__":
    port, process, results = sys.argv[1:]
    eg.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    folder = Path(results).parent
    found = {name: part("sharded", folder / name) for name, part in PARTS.items()}
    Path(results).write_bytes(pickle.dumps(found))
