"""The time from calling `fit` to the end of the first step, in fresh processes."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.children import child
from benchmarks.options import Options
from benchmarks.pairs import Row
from benchmarks.works import CONV, DIGITS, Work

GOAL = 1.15
WORKS = {"digits": DIGITS, "conv": CONV}


def run(options: Options) -> list[Row]:
    """A line a work; everything is imported, the data is there and the device is awake when the time starts."""
    return [compare(name, work, max(3, options.repeats // 2)) for name, work in WORKS.items()]


def compare(name: str, work: Work, pairs: int) -> Row:
    """Pairs of processes."""
    values: dict[str, list[float]] = {"ours": [], "theirs": []}
    for k in range(pairs):
        for side in ("ours", "theirs") if k % 2 == 0 else ("theirs", "ours"):
            values[side].append(child("startup", side, name))
    return Row(f"{work.name}, first step", "hand-written loop", "ms", values["ours"], values["theirs"], GOAL)


def ours(work: Work, x: Any, y: Any) -> float:
    """Seconds of `fit`, the first parameters included."""
    import elegy as eg

    trainer = eg.Trainer(
        work.module(), loss=eg.losses.CrossEntropy(), metrics=eg.metrics.Accuracy(), optimizer=work.optimizer()
    )
    start = time.perf_counter()
    trainer.fit(x, y, batch_size=work.batch_size, max_steps=1, verbose=0)
    return time.perf_counter() - start


def theirs(work: Work, x: Any, y: Any) -> float:
    """Seconds of making parameters and optimizer state in one compiled function, and of one compiled step."""
    import jax
    import jax.numpy as jnp

    from benchmarks.hand_written import HandWritten, first_state

    loop = HandWritten(work, params={})
    size = work.batch_size
    start = time.perf_counter()
    params, opt_state = first_state(work, x[:size])
    jax.block_until_ready(loop.train_step((params, opt_state, jnp.zeros(2)), x[:size], y[:size]))
    return time.perf_counter() - start


def main(side: str, name: str) -> None:
    """One measurement, printed in milliseconds."""
    import jax

    jax.block_until_ready(jax.numpy.zeros(2))
    work = WORKS[name]
    x, y = work.data(2_048)
    print(json.dumps(1e3 * {"ours": ours, "theirs": theirs}[side](work, x, y)))


if __name__ == "__main__":
    main(*sys.argv[1:])
