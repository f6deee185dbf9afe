"""The command line: `elegy fit digits.py --fit.epochs 10`, or `python digits.py fit --fit.epochs 10`."""

from elegy.cli.entry import main

__all__ = ["main"]
