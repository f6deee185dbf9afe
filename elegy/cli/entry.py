"""The entry: finds the command and the program, reads the options, and runs."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from elegy.cli import program as program_module
from elegy.cli import saved
from elegy.cli.commands import COMMANDS, Call, serve_export
from elegy.cli.errors import CliError, is_of_elegy, nearest
from elegy.cli.options import Option
from elegy.cli.parser import parse
from elegy.cli.program import RUN_DIR, Program, trainer_options
from elegy.cli.runs import READERS
from elegy.errors import CheckpointError
from elegy.lazy import require
from elegy.serving.model import is_export


def main(
    build: Callable[..., Any] | None = None,
    data: Callable[..., Any] | None = None,
    optimizer: Callable[..., Any] | None = None,
    *,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs a command, of the program `elegy` or of your own file.

    `python digits.py fit --fit.epochs 10` is the same as `elegy fit digits.py --fit.epochs 10` if the file ends in

        if __name__ == "__main__":
            eg.cli.main(build, data)

    Args:
        build: returns the module, loss, metrics and optimizer; None if the command names a program.
        data: returns the data.
        optimizer: returns the optimizer, if `build` does not.
        argv: the arguments; None for those of the process.

    Raises:
        SystemExit: with code 2 and a message if the command line or an argument is wrong, with 1 if a checkpoint cannot
            be read or written, after `--help`, and with code 128 + signal if a signal ended the training.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> def build(width: int = 4):
        ...     return nn.Dense(width), eg.losses.MeanSquaredError(), None, optax.adam(0.1)
        >>> def data():
        ...     return np.ones((8, 2), np.float32), np.ones((8, 4), np.float32)
        >>> main(build, data, argv=["summary"])
        ┌────────...
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    prog = f"{'elegy' if build is None else os.path.basename(sys.argv[0])} {name}".rstrip()
    try:
        own = None if build is None else program_module.in_memory(build, data, optimizer)
        _run(prog, name, arguments[1:], own)
    except (CliError, CheckpointError, TypeError, ValueError, OSError) as error:
        if not isinstance(error, (CliError, CheckpointError)) and not is_of_elegy(error):
            raise
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, CheckpointError) else 2) from None


def _run(prog: str, name: str, argv: list[str], own: Program | None) -> None:
    if name in ("", "-h", "--help"):
        print(_usage(prog.split()[0], own is not None))
        return
    if name == "--version":
        print(importlib.metadata.version("elegy"))
        return
    if name in READERS:
        READERS[name].run(prog, argv)
        return
    command = COMMANDS.get(name)
    if command is None:
        known = [*COMMANDS, *READERS]
        raise CliError(f"there is no command {name!r}.{nearest(name, known)} Commands: {', '.join(known)}.")
    try:
        require("jsonargparse", "the command line")
        require("docstring_parser", "the command line")
    except ImportError as error:
        raise CliError(str(error)) from error
    target, argv = _target(argv)
    if target is None and own is None and any(token in ("-h", "--help") for token in argv):
        parse(prog, f"{command.about} {_HELP.format(prog=prog)}", [*trainer_options(), *command.options()], argv, {})
    if name == "serve" and target is not None and is_export(target):
        serve_export(target, parse(prog, command.about, command.options(), argv, {}))
        return
    run, named = _run_and_program(prog, name, target, argv, own)
    program = own or (None if named is None else program_module.found(named))
    config: dict[str, Any] = {} if run is None else saved.read_config(run, needed=program is None)
    if program is None and run is not None:
        program = program_module.from_record(saved.program_of(config, run))
    if program is None:
        raise CliError(f"give a program: `{prog} FILE_OR_MODULE:FUNCTION [options]`.")
    options = [*program.options, *command.options()]
    others: list[Option] = [option for other in COMMANDS.values() for option in other.options()]
    if name != "fit":  # only a training has a folder
        others += [option for option in options if option.name == RUN_DIR]
        options = [option for option in options if option.name != RUN_DIR]
    command.run(Call(program, parse(prog, command.about, options, argv, config, others), run))


_HELP = "Every program has these options; `{prog} FILE_OR_MODULE:FUNCTION --help` lists those of a program, too."


def _target(argv: list[str]) -> tuple[str | None, list[str]]:
    """Takes the first argument, if it is not an option."""
    return (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)


def _given(argv: list[str], option: str) -> str | None:
    """Returns the value of an option, before the options of the program are known."""
    for place, token in enumerate(argv):
        name, equals, value = token.partition("=")
        if name == option:
            return value if equals else (argv[place + 1] if place + 1 < len(argv) else None)
    return None


def _run_and_program(
    prog: str, name: str, target: str | None, argv: list[str], own: Program | None
) -> tuple[str | None, str | None]:
    """Returns the run that the command reads, and the program that it names; None for each that is not given.

    Raises:
        CliError: if the command takes the other of the two.
    """
    if COMMANDS[name].reads:
        if target is None:
            raise CliError(f"give a run or a checkpoint: `{prog} RUN [options]`.")
        if not saved.is_run(target):
            more = "" if own is not None else " A program is given by --program FILE:FUNCTION."
            raise CliError(f"there is no run and no checkpoint at {target!r}.{more}")
        return target, _given(argv, "--program")
    if target is not None and saved.is_run(target):
        if name == "fit":
            raise CliError(f"{target} is not a program: `{prog} --resume {target}` goes on with a run.")
        return target, None
    if target is not None and own is not None:
        raise CliError(f"unexpected argument {target!r}: options begin with --.")
    resume = _given(argv, "--resume") if name == "fit" else None
    return (None if resume == "auto" else resume), target


def _usage(prog: str, own: bool) -> str:
    lines = [f"Usage: {prog} COMMAND {'[RUN]' if own else 'PROGRAM_OR_RUN'} [options]", "", "Commands:"]
    for name, command in COMMANDS.items():
        where = "RUN" if command.reads else "" if own else "PROGRAM"
        lines.append(f"  {f'{name} {where}':<18}{command.about}")
    lines += [f"  {f'{name} {one.where}':<18}{one.about}" for name, one in READERS.items()]
    lines += ["", f"`{prog} COMMAND --help` lists the options."]
    if not own:
        lines.append("PROGRAM is FILE_OR_MODULE:FUNCTION; RUN is the folder of a run, or a checkpoint.")
    return "\n".join(lines)
