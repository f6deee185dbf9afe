"""Peak memory of a process that trains a model of 200 MB with Adam."""

from __future__ import annotations

import json
import resource
import sys
from functools import partial

from benchmarks.children import child
from benchmarks.options import Options
from benchmarks.pairs import Row
from benchmarks.works import MLP, Work

GOAL = 1.05
WORK = Work("200 MB model", partial(MLP, hidden=10_000, classes=1_000), (4_000,), rows=256, batch_size=32, epochs=1)


def run(options: Options) -> list[Row]:
    """One line, pairs of processes, on a CPU; the line of the GPT shows the memory of an accelerator."""
    if options.accelerator:
        return []
    pairs = [(child("memory", "ours"), child("memory", "theirs")) for _ in range(options.processes)]
    ours, theirs = zip(*pairs, strict=True)
    return [Row(f"{WORK.name} with Adam, peak memory", "hand-written loop", "MB", list(ours), list(theirs), GOAL)]


def main(side: str) -> None:
    """Trains a few steps from fresh parameters, and prints the peak of the resident memory in megabytes."""
    x, y = WORK.data()
    if side == "ours":
        import elegy as eg

        trainer = eg.Trainer(
            WORK.module(), loss=eg.losses.CrossEntropy(), metrics=eg.metrics.Accuracy(), optimizer=WORK.optimizer()
        )
        trainer.fit(x, y, batch_size=WORK.batch_size, verbose=0)
    else:
        from benchmarks.hand_written import HandWritten, first_state

        loop = HandWritten(WORK, params={})
        loop.params, loop.opt_state = first_state(WORK, x[: WORK.batch_size])
        loop.fit(x, y, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(kilobytes / (1024 if sys.platform != "darwin" else 1024**2)))


if __name__ == "__main__":
    main(*sys.argv[1:])
