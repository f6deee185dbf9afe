"""Trains 200,000 small steps with every callback on; watches memory, files and threads: `python -m benchmarks.soak`.

The first quarter is the warm-up.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import elegy as eg

GROWTH = 0.01
"""The allowed growth of memory after the warm-up, between the medians of two quarters."""


class Small(eg.ElegyModule):
    """Logistic regression."""

    def init(self, key, inputs):
        return self.replace(params={"w": jnp.zeros((inputs.shape[-1], 3))})

    def apply(self, key, inputs, training):
        return inputs @ self.params["w"], self


class Watch(eg.Callback):
    """Measures this process at intervals of epochs."""

    def __init__(self, every: int, saver: eg.callbacks.ModelCheckpoint):
        self.every, self.saver = every, saver
        self.rows: list[dict[str, Any]] = []

    def on_epoch_end(self, event: Any) -> None:
        """Measures."""
        if (event.epoch + 1) % self.every == 0:
            self.saver.wait()  # a running save has open files and a thread
            gc.collect()
            row = {"step": event.step, **measure()}
            self.rows.append(row)
            print(", ".join(f"{name} {value:,}" for name, value in row.items()), file=sys.stderr, flush=True)


def measure() -> dict[str, int]:
    """Returns the memory, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "kilobytes": pages * os.sysconf("SC_PAGESIZE") // 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "Python threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def main() -> int:
    """Runs the test; returns 0 if nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000)
    arguments = parser.parse_args()
    per_epoch = 200
    epochs = arguments.steps // per_epoch
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(per_epoch * 4, 5)).astype(np.float32), rng.integers(0, 3, per_epoch * 4)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        saver = eg.callbacks.ModelCheckpoint(place / "run", monitor="val_loss", save_top_k=3, every=eg.Every(epochs=5))
        watch = Watch(max(epochs // 20, 1), saver)
        trainer = eg.Trainer(
            Small(),
            loss=eg.losses.CrossEntropy(),
            metrics=eg.metrics.Accuracy(),
            optimizer=optax.adam(1e-4),
            nonfinite="skip",
        )
        trainer.fit(
            x,
            y,
            batch_size=4,
            epochs=epochs,
            validation_data=(x[:40], y[:40]),
            verbose=2,
            callbacks=[
                eg.callbacks.EarlyStopping("val_loss", patience=epochs, restore_best_weights=True),
                eg.callbacks.TerminateOnNaN(),
                eg.callbacks.CSVLogger(place / "log.csv", every=eg.Every(steps=50)),
                eg.callbacks.TensorBoard(place / "board", every=eg.Every(steps=50), histograms=True),
                eg.callbacks.LambdaCallback(on_epoch_end=lambda event: None),
                saver,
                watch,
            ],
        )
    quarter = len(watch.rows) // 4
    early, late = watch.rows[quarter : 2 * quarter], watch.rows[-quarter:]
    before, after = (statistics.median(row["kilobytes"] for row in rows) for rows in (early, late))
    growth = after / before - 1
    print(f"memory {growth:+.2%} from the second quarter ({before:,.0f} kB) to the last ({after:,.0f} kB)")
    grown = []
    for name in ("files", "threads", "Python threads"):
        most, later = (max(row[name] for row in rows) for rows in (early, late))
        print(f"{name}: at most {most}, later {later}")
        grown += [name] * (later > most)
    return 1 if grown or growth >= GROWTH else 0


if __name__ == "__main__":
    raise SystemExit(main())
