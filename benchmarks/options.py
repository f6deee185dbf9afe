"""The options of all benchmarks."""

from __future__ import annotations

import dataclasses

from benchmarks.works import Work


@dataclasses.dataclass(frozen=True)
class Options:
    """The number of pairs, and the size of the data.

    Args:
        quick: True for fewer pairs and smaller data: under two minutes in total.
        repeats: pairs for each line.
    """

    quick: bool = False
    repeats: int = 9

    def sized(self, work: Work) -> Work:
        """Returns the workload, with less data for a quick run."""
        if not self.quick:
            return work
        rows = {"digits MLP": 1_792, "image MLP": 15_000, "conv": 2_560}[work.name]
        return dataclasses.replace(work, rows=rows, epochs=min(work.epochs, 20))
