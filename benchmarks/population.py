"""Sixteen digits MLPs in one population, against one Trainer.

On a GPU, where one of them leaves the device idle, the goal is 3. On a CPU the arithmetic of sixteen is the bound.
There, the members with a shared order train one after another, because this network is wide.
"""

from __future__ import annotations

from typing import Any

import optax

import elegy as eg
from benchmarks.options import Options
from benchmarks.pairs import Row, measure
from benchmarks.works import DIGITS

MEMBERS = 16


def run(options: Options) -> list[Row]:
    """Times an epoch of each, in pairs: members with the orders of their seeds, and with one shared order."""
    work = options.sized(DIGITS)
    x, y = work.data()

    def trainer() -> eg.Trainer[Any]:
        return eg.Trainer(work.module(), eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.adam(1e-3))

    fit = {"epochs": work.epochs, "batch_size": work.batch_size, "verbose": 0}
    one = trainer()

    def fit_one() -> Any:
        one.fit(x, y, **fit)
        return one.state.params

    rows = []
    for order in ("own", "shared"):
        population = eg.Population(trainer(), seeds=MEMBERS, order=order)  # type: ignore[arg-type]  # of two literals

        def fit_all(population: eg.Population = population) -> Any:
            population.fit(x, y, **fit)
            return population.state.params

        rows.append(
            measure(
                f"{MEMBERS} digits MLPs, {order} order",
                fit_all,
                fit_one,
                pairs=options.repeats,
                per=work.epochs * work.steps,
                other="one Trainer",
                goal=3.0,
            )
        )
    return rows
