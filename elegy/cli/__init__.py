"""The command line: `elegy fit digits.py --fit.epochs 10`, and the same from a file of one's own."""

from elegy.cli.entry import main

__all__ = ["main"]
