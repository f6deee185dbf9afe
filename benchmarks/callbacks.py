"""The cost of loggers: bar, CSV and TensorBoard at every 50th step, and ten loggers at every step.

Ten loggers make 19 files and directories a run, in the directory of temporary files (`TMPDIR`). The time of one is
told, because it differs: 6 us in memory, but 10 to 900 us were seen on one disk, from hour to hour.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import elegy as eg
from benchmarks.options import Options
from benchmarks.ours import trainer_for
from benchmarks.pairs import Row, measure
from benchmarks.works import WORKS, Work

GOAL, GOAL_OF_TEN = 1.05, 1.10


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
    """Two lines for each workload."""
    works = [options.sized(work) for work in WORKS]
    return [
        row
        for work in works
        for row in (
            compare(work, options.repeats, "bar + CSV + TensorBoard", some, 1, GOAL),
            compare(work, options.repeats, "ten loggers, every step", ten, 0, GOAL_OF_TEN),
        )
    ]


def some(place: Path) -> list[eg.Callback]:
    """Two loggers with values at every 50th step."""
    every = eg.Every(steps=50)
    return [eg.callbacks.CSVLogger(place / "log.csv", every=every), eg.callbacks.TensorBoard(place / "board", every)]


def ten(place: Path) -> list[eg.Callback]:
    """Ten loggers with values at every step."""
    every = eg.Every(steps=1)
    return [
        *(eg.loggers.JSONLines(place / f"{k}.jsonl", every) for k in range(4)),
        *(eg.loggers.CSV(place / f"{k}.csv", every=every) for k in range(3)),
        *(eg.loggers.TensorBoard(place / f"board{k}", every) for k in range(3)),
    ]


def time_of_file() -> str:
    """Returns what it costs to make a file here."""
    times = []
    with tempfile.TemporaryDirectory() as directory:
        for k in range(50):
            begin = time.perf_counter()
            Path(directory, str(k)).open("wb").close()
            times.append(time.perf_counter() - begin)
    return f"making a file takes {1e6 * statistics.median(times):.0f} us"


def compare(
    work: Work, pairs: int, what: str, loggers: Callable[[Path], list[eg.Callback]], verbose: int, goal: float
) -> Row:
    """One workload with and without loggers."""
    x, y = work.data()
    watched, silent = trainer_for(work), trainer_for(work)
    arguments = {"batch_size": work.batch_size, "epochs": work.epochs}
    with tempfile.TemporaryDirectory() as directory:
        places = (Path(directory, str(k)) for k in itertools.count())

        def logging() -> object:
            with terminal():
                return watched.fit(x, y, callbacks=loggers(next(places)), verbose=verbose, **arguments)

        return measure(
            f"{work.name}, {what}",
            logging,
            lambda: silent.fit(x, y, verbose=0, **arguments),
            pairs=pairs,
            per=work.steps * work.epochs,
            other="fit without them",
            goal=goal,
            note=time_of_file(),
        )
