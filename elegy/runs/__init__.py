"""Reads the folders of runs (`Trainer(run_dir=...)`): lists them, compares them, and writes pages about them."""

from elegy.runs.listing import listing
from elegy.runs.record import RunRecord, find, read
from elegy.runs.report import compare, report

__all__ = ["RunRecord", "compare", "find", "listing", "read", "report"]
