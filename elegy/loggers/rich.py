"""A table of the logs in the terminal."""

from __future__ import annotations

from typing import Any

from elegy.callbacks.items import Item
from elegy.callbacks.monitor import Monitor, best_is
from elegy.lazy import require
from elegy.loggers.logger import OFTEN, Logger
from elegy.loggers.record import Record
from elegy.types import Every


class Rich(Logger):
    """Shows a live table in the terminal: for each log, the value of the last step, of the last epoch, and the best.

    The best value is the smallest or the largest epoch value, as `Monitor` decides by the name. Where the output is not
    a terminal, the table is printed once, at the end of the run. Pass `verbose=0` to `fit`, so that the progress bar
    does not draw over it.

    Args:
        every: how often steps are shown; see `Logger`.
        console: a `rich.console.Console`; None for the standard output.

    Raises:
        TypeError: if `every` is not an `Every`.

    Example:
        >>> Rich(Every(steps=10)).every
        Every(steps=10)
    """

    writes_files = False

    def __init__(self, every: Every = OFTEN, console: Any = None):
        super().__init__(every)
        self.console = console
        self._live: Any = None
        self._rows: dict[str, dict[str, float]] = {}
        self._title = ""

    def open(self, run: str | None) -> str:
        """Begins to show the table."""
        self._rows = {} if run is None else self._rows
        console = self.console or require("rich.console", "eg.loggers.Rich").Console()
        self._live = require("rich.live", "eg.loggers.Rich").Live(
            console=console, get_renderable=self.table, refresh_per_second=4, auto_refresh=console.is_terminal
        )
        self._live.start()
        return "terminal"

    def log_scalars(self, record: Record) -> None:
        """Takes up the values."""
        column = "step" if record.kind == "step" else "epoch"
        self._title = f"epoch {record.epoch + 1}, step {record.step}, {record.seconds:.0f} s"
        for name, value in record.values.items():
            row = self._rows.setdefault(name, {})
            row[column] = value
            direction = best_is(name) if column == "epoch" else None
            if direction is not None and Monitor(name, direction).better(value, row.get("best")):
                row["best"] = value

    def log_text(self, item: Item) -> None:
        """Prints a text above the table."""
        self._live.console.print(f"{item.name}: {item.value}", markup=False)

    def table(self) -> Any:
        """Returns the table, a `rich.table.Table`."""
        table = require("rich.table", "eg.loggers.Rich").Table(title=self._title or None)
        table.add_column("")
        for column in ("step", "epoch", "best"):
            table.add_column(column, justify="right")
        for name, row in list(self._rows.items()):
            table.add_row(name, *(f"{row[c]:.4g}" if c in row else "" for c in ("step", "epoch", "best")))
        return table

    def finish(self, ended: str) -> None:
        """Leaves the last table in the terminal."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
