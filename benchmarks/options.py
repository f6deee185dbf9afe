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
        accelerator: True on a GPU or TPU, where a process takes longer to start, and everything runs in five minutes.
    """

    quick: bool = False
    repeats: int = 9
    accelerator: bool = False

    @property
    def processes(self) -> int:
        """Pairs of processes for each line."""
        return 1 if self.quick else 2 if self.accelerator else max(3, self.repeats // 2)

    def sized(self, work: Work) -> Work:
        """Returns the workload, with less data for a quick run."""
        if not self.quick:
            return work
        rows = {"digits MLP": 1_792, "image MLP": 15_000, "conv": 2_560}[work.name]
        return dataclasses.replace(work, rows=rows, epochs=min(work.epochs, 20))
