"""The cost of safety: saving and restoring against plain Orbax, an asynchronous save, and the finite check."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

import elegy as eg
from benchmarks.options import Options
from benchmarks.ours import fit, trainer_for
from benchmarks.pairs import Row, measure
from benchmarks.works import CONV, DIGITS, Work
from elegy.checkpoint import AsyncSaver, restore, save

SAVE_GOAL, RESTORE_GOAL = 1.3, 1.5
BLOCKED_GOAL = 20.0
"""Milliseconds for which an asynchronous save of a state of 200 MB may block the loop."""


def run(options: Options) -> list[Row]:
    """Two lines for each size, one for the blocked loop, and one for each workload with the finite check."""
    rows: list[Row] = []
    for megabytes in (50,) if options.quick else (50, 500):
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(Path(folder), megabytes, min(3, options.repeats) if megabytes > 100 else options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        rows.append(blocked(Path(folder), 50 if options.quick else 200, 3 if options.quick else 7))
    return rows + [guarded(options.sized(work), options.repeats) for work in (DIGITS, CONV)]


def state_of(megabytes: int) -> dict[str, jax.Array]:
    """Ten arrays of normally distributed weights."""
    rng = np.random.default_rng(0)
    size = megabytes * 2**20 // 40
    return {f"layer {i}": jax.device_put(rng.standard_normal(size, np.float32)) for i in range(10)}


def compare(folder: Path, megabytes: int, pairs: int) -> list[Row]:
    """Compares with plain Orbax; Elegy's time includes checksums, verification and flushing to the disk."""
    state = state_of(megabytes)
    places = itertools.count()

    def fresh(write: Callable[[Path], Any]) -> Callable[[], None]:
        def call() -> None:
            path = folder / str(next(places))
            write(path)
            shutil.rmtree(path)

        return call

    def orbax_save(path: Path) -> None:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(state))

    args = ocp.checkpoint_utils.construct_restore_args(state)

    def orbax_restore() -> Any:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder / "theirs", args=ocp.args.PyTreeRestore(state, restore_args=args))

    save(folder / "ours", state, {})
    orbax_save(folder / "theirs")
    return [
        measure(
            f"{megabytes} MB, save",
            fresh(lambda path: save(path, state, {})),
            fresh(orbax_save),
            pairs=pairs,
            per=1000,
            other="plain Orbax",
            unit="ms",
            goal=SAVE_GOAL,
        ),
        measure(
            f"{megabytes} MB, restore",
            lambda: restore(folder / "ours", state)[0],
            orbax_restore,
            pairs=pairs,
            per=1000,
            other="plain Orbax",
            unit="ms",
            goal=RESTORE_GOAL,
        ),
    ]


class Wide(eg.ElegyModule):
    """A model whose parameters and Adam moments take a given size."""

    width: int = eg.static_field(default=1)

    def init(self, key, inputs):
        return self.replace(params={"w": jax.random.normal(key, (inputs.shape[-1], self.width))})

    def apply(self, key, inputs, training):
        return inputs @ self.params["w"], self


def blocked(folder: Path, megabytes: int, repeats: int) -> Row:
    """Measures how long an asynchronous `trainer.save` blocks the loop between training steps."""
    x = np.ones((4, 256), np.float32)
    trainer = eg.Trainer(
        Wide(width=megabytes * 2**20 // (3 * 4 * 256)),
        loss=lambda target, preds: (preds**2).mean(axis=-1),
        optimizer=optax.adam(1e-3),
    )
    values = []
    with AsyncSaver() as saver:
        for k in range(repeats + 1):
            trainer.train_on_batch(x, x[:, 0])["loss"]
            start = time.perf_counter()
            trainer.save(folder / "run", saver=saver)
            values.append((time.perf_counter() - start) * 1000)
            if k == 0:
                values.clear()  # the first one imports Orbax
            saver.wait()
    return Row(f"{megabytes} MB, loop blocked", "20 ms", "ms", values, [BLOCKED_GOAL] * len(values), goal=1.0)


def guarded(work: Work, pairs: int) -> Row:
    """Compares `fit` with and without the finite check."""
    data = work.data()
    checked, plain = trainer_for(work, nonfinite="skip"), trainer_for(work)
    return measure(
        f"{work.name}, steps checked",
        lambda: fit(checked, work, data),
        lambda: fit(plain, work, data),
        pairs=pairs,
        per=work.steps * work.epochs,
        other="not checked",
    )
