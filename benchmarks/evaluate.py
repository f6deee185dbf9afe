"""`evaluate` and `predict` on 60,000 rows against loops that pad the last batch."""

from __future__ import annotations

import numpy as np

from benchmarks.hand_written import HandWritten
from benchmarks.options import Options
from benchmarks.ours import trainer_for
from benchmarks.pairs import Row, measure
from benchmarks.works import IMAGE

GOAL = 1.05


def run(options: Options) -> list[Row]:
    """One line for each of the two; both sides have the same parameters."""
    work = IMAGE
    x, y = work.data(20_000 if options.quick else None)
    steps = -(-len(x) // work.batch_size)
    trainer, loop = trainer_for(work), HandWritten(work)
    size = work.batch_size
    ours = trainer.evaluate(x, y, batch_size=size, verbose=0)
    for name, value in loop.evaluate(x, y).items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(trainer.predict(x, batch_size=size), loop.predict(x), rtol=1e-4, atol=1e-4)
    return [
        measure(
            f"evaluate, {len(x):,} rows",
            lambda: trainer.evaluate(x, y, batch_size=size, verbose=0),
            lambda: loop.evaluate(x, y),
            pairs=options.repeats,
            per=steps,
            goal=GOAL,
        ),
        measure(
            f"predict, {len(x):,} rows",
            lambda: trainer.predict(x, batch_size=size),
            lambda: loop.predict(x),
            pairs=options.repeats,
            per=steps,
            goal=GOAL,
        ),
    ]
