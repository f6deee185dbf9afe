"""The time from calling `fit` to the end of the first step, in fresh processes; and with a compilation cache."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

from benchmarks.children import child
from benchmarks.options import Options
from benchmarks.pairs import Row
from benchmarks.works import CONV, DIGITS, Work

GOAL = 1.15
CACHE_GOAL = 1.2
WORKS = {"digits": DIGITS, "conv": CONV}


def run(options: Options) -> list[Row]:
    """One line for each workload; imports, data and the device are ready before the time starts."""
    pairs, rows = options.processes, []
    works = {"digits": DIGITS} if options.quick or options.accelerator else WORKS
    for name, work in works.items():
        rows.append(compare(name, work, pairs))
        with tempfile.TemporaryDirectory() as directory:
            for side in ("ours", "theirs"):
                child("startup", side, name, directory)  # fills the cache
            rows.append(compare(name, work, pairs, directory))
    return rows


def compare(name: str, work: Work, pairs: int, *cache: str) -> Row:
    """Pairs of processes."""
    values: dict[str, list[float]] = {"ours": [], "theirs": []}
    for k in range(pairs):
        for side in ("ours", "theirs") if k % 2 == 0 else ("theirs", "ours"):
            values[side].append(child("startup", side, name, *cache))
    what, goal = ("first step, compilation cache", CACHE_GOAL) if cache else ("first step", GOAL)
    return Row(f"{work.name}, {what}", "hand-written loop", "ms", values["ours"], values["theirs"], goal)


def ours(work: Work, x: Any, y: Any, cache: str | None) -> float:
    """Returns the seconds of `fit`, including the first parameters."""
    import elegy as eg

    trainer = eg.Trainer(
        work.module(),
        loss=eg.losses.CrossEntropy(),
        metrics=eg.metrics.Accuracy(),
        optimizer=work.optimizer(),
        compilation_cache=cache,
    )
    start = time.perf_counter()
    trainer.fit(x, y, batch_size=work.batch_size, max_steps=1, verbose=0)
    return time.perf_counter() - start


def theirs(work: Work, x: Any, y: Any, cache: str | None) -> float:
    """Returns the seconds of one compiled function for parameters and optimizer state, and of one compiled step."""
    import jax
    import jax.numpy as jnp

    from benchmarks.hand_written import HandWritten, first_state

    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    loop = HandWritten(work, params={})
    size = work.batch_size
    start = time.perf_counter()
    params, opt_state = first_state(work, x[:size])
    jax.block_until_ready(loop.train_step((params, opt_state, jnp.zeros(2)), x[:size], y[:size]))
    return time.perf_counter() - start


def main(side: str, name: str, cache: str | None = None) -> None:
    """One measurement, printed in milliseconds."""
    import jax

    jax.block_until_ready(jax.numpy.zeros(2))
    work = WORKS[name]
    x, y = work.data(2_048)
    print(json.dumps(1e3 * {"ours": ours, "theirs": theirs}[side](work, x, y, cache)))


if __name__ == "__main__":
    main(*sys.argv[1:])
