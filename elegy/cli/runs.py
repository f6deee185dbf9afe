"""The commands that read folders of runs: they need no program."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from elegy import runs
from elegy.cli.errors import CliError
from elegy.runs.report import differing


@dataclasses.dataclass(frozen=True)
class Reader:
    """A command that reads runs.

    Args:
        where: its arguments, for the list of commands.
        about: what it does.
        run: runs it, given the name of the command and its arguments.
    """

    where: str
    about: str
    run: Callable[[str, Sequence[str]], None]


def _list(prog: str, argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog, description=READERS["runs"].about)
    parser.add_argument("directory", nargs="?", default="runs", help="where the folders of the runs are")
    _checked(lambda: print(runs.listing(runs.find(parser.parse_args(argv).directory))))


def _compare(prog: str, argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog, description=READERS["compare"].about)
    parser.add_argument("run", nargs="+", help="the folder of a run")
    _output(parser, "compare.html")
    given = parser.parse_args(argv)

    def compare() -> None:
        records = [runs.read(run) for run in given.run]
        print(runs.listing(records))
        if table := differing(records):
            print(f"\nWhat differs:\n{table}\n")
        print(f"wrote {runs.compare(records, given.output)}")

    _checked(compare)


def _report(prog: str, argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog, description=READERS["report"].about)
    parser.add_argument("run", help="the folder of a run")
    _output(parser, "report.html")
    given = parser.parse_args(argv)
    _checked(lambda: print(f"wrote {runs.report(given.run, given.output)}"))


READERS = {
    "runs": Reader("DIR", "Lists runs with their best values.", _list),
    "compare": Reader("RUN RUN", "Draws runs together on a page, and lists the settings that differ.", _compare),
    "report": Reader("RUN", "Writes a page about a run.", _report),
}


def _output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--output", type=Path, default=Path(default), help=f"the file to write; {default} by default")


def _checked(action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        raise CliError(str(error)) from error
