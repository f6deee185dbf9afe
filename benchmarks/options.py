"""What every benchmark is told."""

from __future__ import annotations

import dataclasses

from benchmarks.works import Work


@dataclasses.dataclass(frozen=True)
class Options:
    """How thoroughly to measure.

    Args:
        quick: fewer pairs and smaller data; all of it in under two minutes.
        repeats: pairs a line.
    """

    quick: bool = False
    repeats: int = 9

    def sized(self, work: Work) -> Work:
        """The work, cut down for a quick run."""
        if not self.quick:
            return work
        rows = {"digits MLP": 1_792, "image MLP": 15_000, "conv": 2_560}[work.name]
        return dataclasses.replace(work, rows=rows, epochs=min(work.epochs, 20))
