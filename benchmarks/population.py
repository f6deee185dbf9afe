"""Sixteen digits MLPs in one population, against one Trainer: compiled once before, and as a program that compiles.

The goal is 3. Compiled, it is that of a GPU, where one of them leaves the device idle: on a CPU the arithmetic of
sixteen is the bound. There, the members with a shared order train one after another, because this network is wide.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import optax

import elegy as eg
from benchmarks.children import child
from benchmarks.options import Options
from benchmarks.pairs import Row, measure, timed
from benchmarks.works import DIGITS, Work

MEMBERS, GOAL = 16, 3.0
ORDERS = ("own", "shared")


def run(options: Options) -> list[Row]:
    """Two lines for members with the orders of their seeds, and with one shared order."""
    work = options.sized(DIGITS)
    rows = []
    for order in ORDERS:
        rows.append(
            measure(
                f"{MEMBERS} digits MLPs, {order} order",
                fit(work, order),
                fit(work, "one"),
                pairs=options.repeats,
                per=work.epochs * work.steps,
                other="one Trainer",
                goal=GOAL,
            )
        )
        programs: dict[str, list[float]] = {order: [], "one": []}
        for k in range(options.processes):
            for side in (order, "one") if k % 2 == 0 else ("one", order):
                programs[side].append(child("population", side, str(work.epochs)))
        name = f"{MEMBERS} digits MLPs, {order} order, with compilation"
        rows.append(Row(name, "one Trainer", "ms", programs[order], programs["one"], GOAL))
    return rows


def fit(work: Work, order: str) -> Any:
    """Returns a function that trains sixteen with an order, or one; it returns the parameters."""
    trainer = eg.Trainer(work.module(), eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.adam(1e-3))
    trains: Any = trainer if order == "one" else eg.Population(trainer, seeds=MEMBERS, order=order)  # type: ignore[arg-type]
    return functools.partial(_fit, trains, work, *work.data())


def _fit(trains: Any, work: Work, x: Any, y: Any) -> Any:
    trains.fit(x, y, epochs=work.epochs, batch_size=work.batch_size, verbose=0)
    return trains.state.params


def main(order: str, epochs: str) -> None:
    """One measurement, in a process of its own, printed in milliseconds."""
    jax.block_until_ready(jax.numpy.zeros(2))
    work = dataclasses.replace(DIGITS, epochs=int(epochs))
    print(json.dumps(1e3 * timed(lambda: fit(work, order)())))


if __name__ == "__main__":
    main(*sys.argv[1:])
