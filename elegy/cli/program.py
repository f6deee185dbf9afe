"""The user's program: the functions `build`, `data` and `optimizer`, and what they return."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from elegy import strict_json
from elegy.cli.errors import CliError, nearest
from elegy.cli.options import Option, options_of
from elegy.cli.parser import Values
from elegy.trainer import Trainer

GROUPS = ("build", "optimizer", "data")

RUN_DIR = "trainer.run_dir"
"""The option for the folder of a run; of `elegy fit` alone, where every run has one unless it is null."""

_POSITIONAL = ("module", "loss", "metrics", "optimizer")
_OF_BUILD = (*_POSITIONAL, "callbacks", "variables", "averaging")
_NOT_OPTIONS = (*_OF_BUILD, "config")
_OF_DATA = ("inputs", "labels", "sample_weight", "class_weight", "validation_data", "test_data")


@dataclasses.dataclass(frozen=True)
class Data:
    """What `data` returned.

    Args:
        inputs: as for `Trainer.fit`.
        labels: as for `Trainer.fit`.
        sample_weight: as for `Trainer.fit`.
        class_weight: as for `Trainer.fit`.
        validation_data: as for `Trainer.fit`.
        test_data: in the form of `validation_data`.
    """

    inputs: Any
    labels: Any = None
    sample_weight: Any = None
    class_weight: Any = None
    validation_data: Any = None
    test_data: Any = None

    @property
    def train(self) -> dict[str, Any]:
        """The training data, as arguments of `Trainer.evaluate`."""
        return {"inputs": self.inputs, "labels": self.labels, "sample_weight": self.sample_weight}


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a user's program.

    Args:
        source: the file or the module that holds them.
        build: returns what a trainer is made of.
        data: returns the data; None if there is no such function.
        optimizer: returns the optimizer; None if `build` does.
    """

    source: str
    build: Callable[..., Any]
    data: Callable[..., Any] | None = None
    optimizer: Callable[..., Any] | None = None

    def record(self) -> dict[str, Any]:
        """Returns where the functions are, as JSON values, for `found`."""
        names = {group: getattr(getattr(self, group), "__name__", None) for group in GROUPS}
        return {"source": self.source, **names}

    @functools.cached_property
    def options(self) -> list[Option]:
        """The options of the functions, and those of the trainer."""
        functions = [(group, function) for group in GROUPS if (function := getattr(self, group)) is not None]
        return [option for group, function in functions for option in options_of(function, group)] + trainer_options()

    def optimizer_differs(self, before: Any, now: Mapping[str, Any]) -> bool:
        """True if the options of the function that makes the optimizer have other values than in a saved configuration.

        Args:
            before: the saved configuration, by group and name; one that is not of the command line does not differ.
            now: the configuration of this command.
        """
        group = "build" if self.optimizer is None else "optimizer"
        if not isinstance(before, Mapping) or group not in before:
            return False
        return strict_json.dumps(before[group]) != strict_json.dumps(now.get(group))  # NaN is equal there

    def trainer(self, values: Values, config: Mapping[str, Any] | None = None, **more: Any) -> Trainer:
        """Makes the trainer.

        Args:
            values: the values of the options.
            config: the `config` of the trainer.
            **more: arguments of the trainer that replace those of the options.

        Raises:
            CliError: if a function returns something else.
        """
        made = self.build(**values.group("build"))
        parts = made if isinstance(made, Mapping) else {"module": made}
        if type(made) is tuple and 2 <= len(made) <= len(_POSITIONAL) and _is_module(made[0]):
            parts = dict(zip(_POSITIONAL, made, strict=False))
        if isinstance(made, Trainer) or made is None:
            raise CliError(f"{_where(self.build)} returned {_shown(made)}. {_BUILD}")
        self._check_parts(parts)
        if self.optimizer is not None:
            parts = {**parts, "optimizer": self.optimizer(**values.group("optimizer"))}
        arguments = {**parts, **values.group("trainer"), "config": config, **more}
        try:
            return Trainer(**arguments)
        except (TypeError, ValueError) as error:
            raise CliError(f"the trainer cannot be made: {error}") from error

    def _check_parts(self, parts: Mapping[str, Any]) -> None:
        where = _where(self.build)
        if "module" not in parts:
            raise CliError(f"{where} returned a dict without a 'module'. {_BUILD}")
        options = {option.name.partition(".")[2] for option in trainer_options()}
        for name in parts:
            if name in options:
                raise CliError(f"{where} returned {name!r}, which is the option --trainer.{name}: set it there.")
            if name not in _OF_BUILD:
                raise CliError(f"{where} returned {name!r}.{nearest(str(name), _OF_BUILD)} {_BUILD}")
        if self.optimizer is not None and parts.get("optimizer") is not None:
            raise CliError(f"both {where} and {_where(self.optimizer)} return an optimizer: leave one of them out.")

    def read_data(self, values: Values) -> Data:
        """Calls `data`.

        Raises:
            CliError: if there is no such function, or it returns something else.
        """
        if self.data is None:
            raise CliError(f"{self.source} has no function `data`. {_DATA}")
        made = self.data(**values.group("data"))
        where = _where(self.data)
        if isinstance(made, tuple):
            if not 1 <= len(made) <= 3:
                raise CliError(f"{where} returned a tuple of {len(made)}. {_DATA}")
            return Data(*made)
        if isinstance(made, Mapping) and "inputs" in made:
            for name in made:
                if name not in _OF_DATA:
                    raise CliError(f"{where} returned {name!r}.{nearest(str(name), _OF_DATA)} {_DATA}")
            return Data(**made)
        if made is None or isinstance(made, Mapping):
            raise CliError(f"{where} returned {_shown(made)}. {_DATA}")
        return Data(made)


_BUILD = (
    "It returns the module, a tuple (module, loss, metrics, optimizer), or a dict of arguments of `elegy.Trainer`: "
    + ", ".join(_OF_BUILD)
    + "."
)
_DATA = (
    "It returns (inputs, labels) or (inputs, labels, sample_weight), an iterable of batches, or a dict with "
    + ", ".join(_OF_DATA)
    + "."
)


def trainer_options() -> list[Option]:
    """The options of the trainer: the arguments whose values a file can hold."""
    known = {"strategy": str, "precision": str}
    found = options_of(Trainer, "trainer", skip=_NOT_OPTIONS, known=known)
    return [dataclasses.replace(one, default="auto") if one.name == RUN_DIR else one for one in found]


def found(target: str, data: str = "data", optimizer: str = "optimizer") -> Program:
    """Loads the program that `FILE_OR_MODULE:FUNCTION` names; without a function, `build`.

    Args:
        target: a Python file or an importable module, and the name of the function that builds the module.
        data: the name of the function that returns data.
        optimizer: the name of the function that returns the optimizer.

    Raises:
        CliError: if there is no such file, module or function.
    """
    source, _, function = target.rpartition(":")
    if not source or not function.isidentifier():  # no function is named
        source, function = target, ""
    module, source = _load(source, target)
    build = _function(module, function or "build", target)
    return Program(source, build, *(getattr(module, name, None) for name in (data, optimizer)))


def from_record(record: Mapping[str, Any]) -> Program:
    """Loads the program that a saved configuration names.

    Raises:
        CliError: if it is not there.
    """
    names = {name: record[name] for name in ("data", "optimizer") if record.get(name)}
    try:
        return found(f"{record['source']}:{record['build']}", **names)
    except CliError as error:
        raise CliError(f"{error} The run names this program: if it has moved, pass --program FILE:FUNCTION.") from error


def in_memory(
    build: Callable[..., Any], data: Callable[..., Any] | None, optimizer: Callable[..., Any] | None
) -> Program:
    """The program of functions that are at hand: their file, or their module if they have none.

    Raises:
        CliError: if one is not a function of a module.
    """
    for function in (build, data, optimizer):
        if function is not None and not callable(function):
            raise CliError(f"main was given {function!r}, which is not a function.")
    file = inspect.getsourcefile(inspect.unwrap(build))
    return Program(os.path.abspath(file) if file else build.__module__, build, data, optimizer)


def _load(source: str, target: str) -> tuple[ModuleType, str]:
    path = Path(source)
    if path.suffix != ".py" and os.sep not in source:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
        try:
            return importlib.import_module(source), source
        except ModuleNotFoundError as error:
            if error.name is None or not f"{source}.".startswith(f"{error.name}."):
                raise  # the module was found, and imports another that was not
            raise CliError(f"there is no module {error.name!r} for {target!r}: give FILE.py:FUNCTION.") from error
    path = path.absolute()
    if not path.is_file():
        raise CliError(f"there is no file {path} for {target!r}.")
    sys.path.insert(0, str(path.parent))  # as `python FILE` does
    name = f"elegy_program_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CliError(f"{path} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module, str(path)


def _function(module: ModuleType, name: str, target: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
    own = [key for key, value in functions.items() if value.__module__ == module.__name__ and not key.startswith("_")]
    there = f" It has {', '.join(own)}." if own else ""
    raise CliError(f"{target!r}: there is no function {name!r}.{nearest(name, own)}{there}")


def _is_module(value: Any) -> bool:
    """False for the functions `(init, apply)` of a pair that is the module itself, and of Haiku's transformed."""
    return not inspect.isfunction(value)


def _where(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__name__', repr(function))}()"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value)) or 'nothing'}"
    return "nothing" if value is None else f"a {type(value).__name__}"
