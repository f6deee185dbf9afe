"""The cost of callbacks: progress bar, CSV and TensorBoard, logging every 50 steps, against `fit` without them."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import elegy as eg
from benchmarks.options import Options
from benchmarks.ours import trainer_for
from benchmarks.pairs import Row, measure
from benchmarks.works import WORKS, Work

GOAL = 1.10


class Terminal(io.StringIO):
    """A stream that reports to be a terminal, so that the bar is drawn."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Draws progress bars into memory."""
    real, sys.stderr = sys.stderr, Terminal()
    try:
        yield
    finally:
        sys.stderr = real


def run(options: Options) -> list[Row]:
    """One line for each workload."""
    return [compare(options.sized(work), options.repeats) for work in WORKS]


def compare(work: Work, pairs: int) -> Row:
    """One workload with and without loggers."""
    x, y = work.data()
    every = eg.Every(steps=50)
    watched, silent = trainer_for(work), trainer_for(work)
    arguments = {"batch_size": work.batch_size, "epochs": work.epochs}
    with tempfile.TemporaryDirectory() as directory:

        def logging() -> object:
            loggers = [
                eg.callbacks.CSVLogger(Path(directory, "log.csv"), every=every),
                eg.callbacks.TensorBoard(Path(directory, "board"), every=every),
            ]
            with terminal():
                return watched.fit(x, y, callbacks=loggers, verbose=1, **arguments)

        return measure(
            f"{work.name}, bar + CSV + TensorBoard",
            logging,
            lambda: silent.fit(x, y, verbose=0, **arguments),
            pairs=pairs,
            per=work.steps * work.epochs,
            other="fit without them",
            goal=GOAL,
        )
