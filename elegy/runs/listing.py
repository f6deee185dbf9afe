"""A table of runs as text."""

from __future__ import annotations

from collections.abc import Sequence

from elegy.runs.record import RunRecord


def listing(runs: Sequence[RunRecord]) -> str:
    """Returns a table of runs with their best values: those of evaluations, or of the training where there is none.

    Args:
        runs: the runs, for example `find("runs")`.

    Example:
        >>> values = {"type": "epoch", "step": 3, "epoch": 0, "values": {"loss": 0.5, "val_loss": 0.25}}
        >>> print(listing([RunRecord("first", None, "finished", 3, 1, (values,))]))
        run    status    epochs  steps  val_loss
        first  finished       1      3      0.25
    """
    if not runs:
        return "no runs"
    names = list(dict.fromkeys(name for run in runs for name in _shown(run)))
    rows = [["run", "status", "epochs", "steps", *names]]
    for run in runs:
        best = run.best
        values = [f"{best[name][0]:.5g}" if name in best else "" for name in names]
        label = run.name if run.path is None else str(run.path)
        rows.append([label, run.status, str(run.epoch), str(run.step), *values])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows of a table as lines; the columns from the third on are aligned to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(map(_padded, range(len(row)), row, widths)).rstrip() for row in rows)


def _padded(column: int, text: str, width: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)


def _shown(run: RunRecord) -> list[str]:
    return [name for name in run.best if name.startswith("val_")] or list(run.best)
