"""The times of the checkout that `benchmarks` is imported from, as JSON: see `benchmarks.revisions`.

It also runs with the package `benchmarks` of an earlier revision, so it uses only what all of them have.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

import elegy as eg
from benchmarks.levels import ManagedMLP, haiku_mlp
from benchmarks.ours import fit, trainer_for
from benchmarks.works import CONV, DIGITS, IMAGE, SEED

CALLS = 3


def microseconds(function: Callable[[], Any], steps: int) -> float:
    """The median time of a step over a few calls, after one that compiles."""
    times = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[1:]) / steps


def main() -> None:
    """Measures all lines."""
    lines: dict[str, float] = {}
    for work in (DIGITS, IMAGE, CONV):
        data, steps = work.data(), work.steps * work.epochs
        for name, options in {"default fit": {}, "steps_per_execution=1": {"steps_per_execution": 1}}.items():
            trainer = trainer_for(work)

            def train(trainer: Any = trainer, work: Any = work, data: Any = data, options: Any = options) -> Any:
                return fit(trainer, work, data, **options)

            lines[f"{work.name}, {name}"] = microseconds(train, steps)
    data, steps = DIGITS.data(), DIGITS.steps * DIGITS.epochs
    managed = eg.Trainer(ManagedMLP(), optimizer=DIGITS.optimizer(), seed=SEED)
    for name, trainer in {"managed level": managed, "Haiku": trainer_for(DIGITS, haiku_mlp())}.items():
        lines[f"digits MLP, {name}"] = microseconds(lambda trainer=trainer: fit(trainer, DIGITS, data), steps)
    (x, y), trainer = IMAGE.data(), trainer_for(IMAGE)
    size, steps = IMAGE.batch_size, IMAGE.steps
    lines["evaluate"] = microseconds(lambda: trainer.evaluate(x, y, batch_size=size, verbose=0), steps)
    lines["predict"] = microseconds(lambda: trainer.predict(x, batch_size=size), steps)
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
