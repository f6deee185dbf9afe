"""The commands: their options, and what they do with a program and the values of the options."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from elegy import strict_json
from elegy.checkpoint import best, find_checkpoints
from elegy.checkpoint.naming import CHECKPOINTS
from elegy.cli.errors import CliError
from elegy.cli.options import REQUIRED, Option, options_of
from elegy.cli.parser import PROGRAM, Values
from elegy.cli.program import Program
from elegy.cli.saved import checkpoint_config, checkpoint_of, folder_asked_for, latest_run, other_options
from elegy.cli.sets import chosen, first_batch, told_by_data
from elegy.data.plan import DEFAULT_BATCH_SIZE
from elegy.distributed import is_first
from elegy.errors import CheckpointError
from elegy.integers import positive_int_or_none
from elegy.lazy import require
from elegy.names import array_name, path_name
from elegy.serving import server
from elegy.serving.model import Served, of_export
from elegy.strategies.strategy import struct_of
from elegy.trainer import Trainer

_DATA = ("data", "inputs", "labels", "sample_weight", "class_weight", "validation_data", "callbacks")
_KNOWN = {"weights": Literal["trained", "averaged"], "validation_weights": Literal["trained", "averaged"]}


@dataclasses.dataclass(frozen=True)
class Call:
    """A command that is about to run.

    Args:
        program: the user's program.
        values: the values of the options.
        run: the run or the checkpoint that the command reads; None if there is none.
    """

    program: Program
    values: Values
    run: str | None = None

    def trainer(self) -> Trainer:
        """The trainer, with the state of the checkpoint if there is one."""
        trainer = self.program.trainer(self.values)
        if self.run is not None:
            found = checkpoint_of(self.run)
            trainer.restore(best(found) if self.values.json.get("checkpoint") == "best" else found)
        return trainer


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Args:
        about: its description.
        run: what it does.
        options: its options, besides those of the program.
        reads: whether it reads a run or a checkpoint instead of a program.
    """

    about: str
    run: Callable[[Call], None]
    options: Callable[[], list[Option]]
    reads: bool = False


def fit(call: Call) -> None:
    """Trains."""
    values = call.values
    config = {PROGRAM: call.program.record(), **_saved(values)}
    folder = None if call.run is None else folder_asked_for(call.run)
    more = {} if folder is None else {"run_dir": folder}
    trainer = call.program.trainer(values, config, **more)
    data = call.program.read_data(values)
    sets = {"class_weight": data.class_weight, "validation_data": data.validation_data}
    resume = _resumes(values["resume"], folder)
    resumed = latest_run(trainer, values) if resume == "auto" else resume
    before = None if resumed is None else checkpoint_config(resumed)
    wanted: Literal["new"] | None = "new" if call.program.optimizer_differs(before, config) else None
    try:
        trainer.fit(**data.train, **sets, **values.group("fit"), resume=resume, hyperparameters=wanted)
    except CheckpointError as error:
        if others := other_options(before, config):
            raise CheckpointError(f"{error}\n{others}") from error
        raise
    if trainer.run_dir is not None and is_first() and values.group("fit")["verbose"]:
        print(f"run folder: {trainer.run_dir}")
    if trainer.interrupted is not None:
        sys.exit(128 + trainer.interrupted)


def _resumes(resume: str | None, folder: Path | None) -> str | None:
    """The `resume` of `Trainer.fit`; None for a run that ended before its first checkpoint."""
    if folder is not None and resume is not None and not find_checkpoints(Path(resume) / CHECKPOINTS):
        print(f"{resume} has no checkpoint yet: its configuration is trained from the beginning.", file=sys.stderr)
        return None
    return resume


def _saved(values: Values) -> dict[str, Any]:
    """The groups of values that a run is made of."""
    return {name: value for name, value in values.json.items() if isinstance(value, dict)}


def evaluate(call: Call) -> None:
    """Prints the losses and metrics of a data set as JSON."""
    trainer = call.trainer()
    _, parts = chosen(call.program.read_data(call.values), call.values["on"])
    found = {name: trainer.evaluate(**part, **call.values.group("evaluate")) for name, part in parts.items()}
    if is_first():
        print(strict_json.dumps(found.get("", found)))


def predict(call: Call) -> None:
    """Writes the outputs of a data set, or of a file of inputs, to a file."""
    output = Path(call.values["output"])
    if output.suffix not in (".npy", ".npz"):
        raise CliError(f"--output {output}: the name of the file must end in .npy or .npz.")
    _check_place(output)
    trainer = call.trainer()
    if call.values["inputs"] is not None:
        where = f"--inputs {call.values['inputs']}"
        inputs = _arrays(Path(call.values["inputs"]))
    else:
        name, parts = chosen(call.program.read_data(call.values), call.values["on"])
        if list(parts) != [""]:
            raise CliError(f"the {name} data are several data sets ({', '.join(parts)}): give --inputs FILE.")
        inputs, where = parts[""]["inputs"], f"the {name} data"
    with told_by_data(lambda: call.program.read_data(call.values), inputs, where):
        outputs = trainer.predict(inputs, **call.values.group("predict"))
    if is_first():
        _write(outputs, output)


def _check_place(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise CliError(f"--output {output}: the directory {output.absolute().parent} does not exist.")


def _check_library(name: str, purpose: str) -> None:
    """Checks that a library is installed, before anything is computed that needs it."""
    try:
        require(name, purpose)
    except ImportError as error:
        raise CliError(str(error)) from error


def _write(outputs: Any, output: Path) -> None:
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(outputs)}
    if output.suffix == ".npy":
        if len(named) != 1:
            raise CliError(f"the outputs are several arrays ({', '.join(named)}): the --output file must end in .npz.")
        np.save(output, next(iter(named.values())))
    else:
        np.savez(output, **{"outputs" if name == "(root)" else name: leaf for name, leaf in named.items()})
    print(f"wrote {output}: {', '.join(map(array_name, named.values()))}")


def _arrays(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError) as error:
        raise CliError(f"--inputs {path} cannot be read as a .npy or .npz file: {error}") from error


def export(call: Call) -> None:
    """Writes the prediction step for use without Elegy."""
    _check_library("flatbuffers", "elegy export")
    batch = first_batch(call.program.read_data(call.values))
    call.trainer().export(call.values["output"], batch["inputs"], **call.values.group("export"))
    print(f"wrote {call.values['output']}")


def summary(call: Call) -> None:
    """Prints a table of the layers."""
    batch = first_batch(call.program.read_data(call.values))
    call.trainer().summary(batch["inputs"], **call.values.group("summary"))


def cost(call: Call) -> None:
    """Prints the operations and the memory of a training step."""
    options = call.values.group("cost")
    data = call.program.read_data(call.values)
    rows = positive_int_or_none("batch_size", options["batch_size"]) or DEFAULT_BATCH_SIZE
    print(call.trainer().cost(**first_batch(data, rows), **options))


def find_lr(call: Call) -> None:
    """Prints a learning rate from a range test."""
    if (output := call.values["output"]) is not None:
        _check_library("matplotlib", "elegy find-lr --output")
        _check_place(Path(output))
    data = call.program.read_data(call.values)
    test = call.trainer().find_learning_rate(**data.train, **call.values.group("find_lr"))
    if test.suggestion is not None:
        print(f"{test.suggestion:.3g}")
    if output is not None:
        test.plot().figure.savefig(output)
    if test.suggestion is None:
        raise CliError("the loss does not fall at any learning rate of the test.")


def serve(call: Call) -> None:
    """Serves a checkpoint over HTTP."""
    how = _how(call.values)
    batch = first_batch(call.program.read_data(call.values))
    trainer = call.trainer()
    trainer.predict_on_batch(batch["inputs"])  # makes the state, and loads the checkpoint
    about = {"checkpoint": str(call.run), "module": trainer.configuration()["trainer"]["module"], "step": trainer.step}
    server.serve(Served(trainer.predict_on_batch, jax.tree.map(struct_of, batch["inputs"]), about), **how)


def serve_export(path: str, values: Values) -> None:
    """Serves what `elegy export` wrote, without the program."""
    how = _how(values)
    server.serve(of_export(path), **how)


def _how(values: Values) -> dict[str, Any]:
    """The options of the server, checked before anything is loaded."""
    _check_library("starlette", "elegy serve")
    _check_library("uvicorn", "elegy serve")
    try:
        server.check_options(**values.group("serve"))
    except ValueError as error:
        raise CliError(f"--serve.{error}") from error
    return values.group("serve")


def _of(method: Callable[..., Any], group: str, *skip: str) -> list[Option]:
    return options_of(method, group, skip=(*_DATA, *skip), known=_KNOWN)


_ON = Option(
    "on",
    Literal["test", "validation", "train"] | None,
    None,
    "the data set: by default the first of these",
)
_RESUME = Option(
    "resume",
    str | None,
    None,
    "the folder of a run, or a checkpoint, to go on with, with its program and configuration; auto: the newest run of "
    "--trainer.run_dir, or a new one",
)
_CHECKPOINT = Option(
    "checkpoint",
    Literal["newest", "best"],
    "newest",
    "of a run or a directory of checkpoints, the newest one, or the best by the log that its ModelCheckpoint monitors",
)
_PROGRAM = Option("program", str | None, None, "FILE_OR_MODULE:FUNCTION, in place of the program that the run names")


def _quiet(options: list[Option]) -> list[Option]:
    """Options of which `verbose` is 0 by default: the output is for other programs."""
    return [dataclasses.replace(one, default=0) if one.name.endswith(".verbose") else one for one in options]


def _output(text: str, default: Any = REQUIRED) -> Option:
    return Option("output", str if default is REQUIRED else str | None, default, text)


COMMANDS = {
    "fit": Command("Trains a program.", fit, lambda: [_RESUME, *_of(Trainer.fit, "fit", "resume", "hyperparameters")]),
    "evaluate": Command(
        "Prints the losses and metrics of a checkpoint, as JSON.",
        evaluate,
        lambda: [_ON, _CHECKPOINT, _PROGRAM, *_quiet(_of(Trainer.evaluate, "evaluate"))],
        reads=True,
    ),
    "predict": Command(
        "Writes the outputs of a checkpoint to a .npy or .npz file.",
        predict,
        lambda: [
            _ON,
            _CHECKPOINT,
            _PROGRAM,
            Option("inputs", str | None, None, "a .npy or .npz file of inputs, in place of a data set"),
            _output("the .npy file, or a .npz file with an array for each output"),
            *_of(Trainer.predict, "predict"),
        ],
        reads=True,
    ),
    "export": Command(
        "Writes the prediction step of a checkpoint for use without Elegy, by jax.export.",
        export,
        lambda: [_CHECKPOINT, _PROGRAM, _output("the directory to write"), *_of(Trainer.export, "export", "path")],
        reads=True,
    ),
    "serve": Command(
        "Answers predictions of a checkpoint or an export over HTTP, for a quick try.",
        serve,
        lambda: [_CHECKPOINT, _PROGRAM, *options_of(server.serve, "serve", skip=("served",))],
        reads=True,
    ),
    "summary": Command(
        "Prints a table of the layers of a program's module.",
        summary,
        lambda: _of(Trainer.summary, "summary", "return_repr"),
    ),
    "cost": Command(
        "Prints the operations and the memory of a training step.", cost, lambda: _of(Trainer.cost, "cost")
    ),
    "find-lr": Command(
        "Prints the learning rate at which the loss falls fastest.",
        find_lr,
        lambda: [
            _output("an image file for the plot of the test", None),
            *_of(Trainer.find_learning_rate, "find_lr"),
        ],
    ),
}
