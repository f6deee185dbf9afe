"""`fit` against the hand-written loop: with its defaults, and with one step per execution.

For comparison there is a hand-written `lax.scan` over each epoch, which shows the time of the steps alone. It is left
out for convolutions, which XLA runs many times slower in a loop on the CPU.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from benchmarks.hand_written import HandWritten
from benchmarks.options import Options
from benchmarks.ours import fit, trainer_for
from benchmarks.pairs import Row, measure
from benchmarks.works import WORKS, Work

GOALS = {"digits MLP": 0.65, "image MLP": 0.90, "conv": 1.00}
SINGLE_GOAL = 1.05


def run(options: Options) -> list[Row]:
    """Two lines for each workload, and a third if it can be scanned."""
    return [row for work in WORKS for row in compare(options.sized(work), options.repeats)]


def compare(work: Work, pairs: int) -> list[Row]:
    """Checks that both loops compute the same values, then times them."""
    data = work.data()
    check_same(work, data)
    rows = []
    for how, goal, arguments in (
        ("default fit", GOALS[work.name], {}),
        ("steps_per_execution=1", SINGLE_GOAL, {"steps_per_execution": 1}),
    ):
        trainer, loop = trainer_for(work), HandWritten(work)
        rows.append(
            measure(
                f"{work.name}, {how}",
                lambda trainer=trainer, arguments=arguments: fit(trainer, work, data, **arguments),
                lambda loop=loop: loop.fit(*data, work.epochs),
                pairs=pairs,
                per=work.steps * work.epochs,
                goal=goal,
            )
        )
    if work.name != "conv":
        trainer, loop = trainer_for(work), HandWritten(work)
        placed = jax.device_put(data)
        rows.append(
            measure(
                f"{work.name}, default fit",
                lambda: fit(trainer, work, data),
                lambda: loop.fit_scanned(*placed, work.epochs),
                pairs=pairs,
                per=work.steps * work.epochs,
                other="epoch in one scan",
            )
        )
    return rows


def check_same(work: Work, data: Any, epochs: int = 2) -> None:
    """Raises an error if the loss curves differ: only loops that compute the same values can be compared."""
    x, y = (part[: 10 * work.batch_size + 5] for part in data)
    trainer = trainer_for(work)
    history = trainer.fit(x, y, batch_size=work.batch_size, epochs=epochs, verbose=0).history
    curve = HandWritten(work).fit(x, y, epochs)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(
            history[name], [row[name] for row in curve], rtol=1e-4, err_msg=f"{work.name}, {name}"
        )
