"""Reads a command line and configuration files into the values of options."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elegy.cli.errors import CliError, nearest
from elegy.cli.forms import JSON, YAML, flow_yaml, register, with_own_keys
from elegy.cli.options import REQUIRED, Option, key_names, key_types, type_text
from elegy.lazy import require

PROGRAM = "program"
"""The key of a saved configuration under which it names the user's program."""


class Values:
    """The values of a command's options.

    Args:
        parser: the parser that made them.
        namespace: what it returned.

    Attributes:
        json: the values as JSON values, by group and name.
    """

    def __init__(self, parser: Any, namespace: Any):
        self.json: dict[str, Any] = json.loads(parser.dump(namespace, format=JSON, skip_unset=False))
        self.json.pop("config", None)
        self._made = parser.instantiate(namespace)

    def group(self, name: str) -> dict[str, Any]:
        """Returns the values of a group as the parameters of its function: paths, enums and dataclasses are made."""
        return dict(vars(self._made[name])) if name in self._made else {}

    def __getitem__(self, name: str) -> Any:
        """Returns the value of an option without a group."""
        return self._made[name]


def parse(
    prog: str,
    about: str,
    options: Sequence[Option],
    argv: Sequence[str],
    base: Mapping[str, Any],
    others: Iterable[Option] = (),
) -> Values:
    """Reads a command line.

    Values on the command line win over those of the files that `--config` names, which win over `base`.

    Args:
        prog: the command, for messages.
        about: its description.
        options: its options.
        argv: the arguments.
        base: the configuration to begin with, by group and name.
        others: options of other commands, which files may have too.

    Raises:
        CliError: for an unknown option, a value of the wrong type, a missing one, or a file that cannot be read.
        SystemExit: after `--help` or `--print_config`.
        ImportError: if jsonargparse is not installed.
    """
    jsonargparse = require("jsonargparse", "the command line")
    register()
    own, every = _Keys(options), _Keys([*options, *others])
    files, rest = _split_files(argv)
    for token in rest:
        if token.startswith("--"):
            own.check(token[2:].partition("=")[0].removesuffix("+"), "option")
    config: dict[str, Any] = {}
    whole = {option.name for option in options if not dataclasses.is_dataclass(option.type)}
    for where, values in [("the saved configuration", with_own_keys(base)), *((path, _read(path)) for path in files)]:
        _merge(config, every.restricted(values, own, where), whole)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=about,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
        parser_mode=YAML,
    )
    parser.add_argument(
        "--config", action="config", help="a YAML or JSON file with values of options, by group and name"
    )
    for option in options:
        given: dict[str, Any] = {"required": True} if option.default is REQUIRED else {"default": option.default}
        try:
            parser.add_argument(f"--{option.name}", type=option.type, help=option.help, **given)
        except (TypeError, ValueError) as error:
            raise CliError(f"--{option.name} has a default value that is not of its type: {error}") from error
    try:
        arguments = ["--config", flow_yaml(config), *rest] if config else rest
        return Values(parser, parser.parse_args(arguments))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise CliError(_explained(str(error), options)) from error


def _explained(message: str, options: Iterable[Option]) -> str:
    """The message for a value of the wrong type; other messages of jsonargparse stay as they are."""
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.findall(r"(?:Got|Given) value: (.*)", message)
    kinds = {name: kind for option in options for name, kind in key_types(option).items()}
    if key is None or key[1] not in kinds:
        return message
    kind = kinds[key[1]]
    if dataclasses.is_dataclass(kind) and "Unable to load config" in message:
        name = dataclasses.fields(kind)[0].name
        return f"--{key[1]} has values by name: write --{key[1]}.{name} VALUE, or --{key[1]} '{{{name}: VALUE}}'."
    if not value:
        return message
    word = value[-1].strip("'").lower()
    right = {"inf": ".inf", "+inf": ".inf", "infinity": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(word)
    more = "" if right is None else f" In YAML, whose forms options have, this number is {right}."
    return f"--{key[1]} takes {type_text(kind)}, but it is {value[-1]}.{more}"


class _Keys:
    """The keys that options accept."""

    def __init__(self, options: Iterable[Option]):
        options = list(options)
        self.names = {name: kind for option in options for name, kind in key_types(option).items()}
        self._prefixes = tuple(prefix for option in options for prefix in key_names(option)[1])

    def __contains__(self, key: str) -> bool:
        return key in self.names or key.startswith(self._prefixes)

    def check(self, key: str, what: str) -> None:
        """Checks a key.

        Raises:
            CliError: if no option has it.
        """
        if key not in self and key not in ("help", "config", "print_config"):
            raise CliError(f"unknown {what} --{key}.{nearest(key, self.names)}")

    def restricted(self, values: Mapping[str, Any], to: _Keys, where: object, path: str = "") -> dict[str, Any]:
        """Returns the values of a configuration that belong to other keys.

        Raises:
            CliError: for a key of the configuration that is not among these.
        """
        kept: dict[str, Any] = {}
        for key, value in values.items():
            full = f"{path}{key}"
            if full == PROGRAM:
                continue
            group = any(name.startswith(f"{full}.") for name in self.names)
            inside = group and isinstance(value, Mapping)
            only_group = group and (full not in self or dataclasses.is_dataclass(self.names.get(full)))
            if only_group and value is None:  # a group in a file, with nothing in it
                continue
            if inside and full not in self:
                if found := self.restricted(value, to, where, f"{full}."):
                    kept[key] = found
            elif only_group and not inside:
                raise CliError(f"{where}: {full!r} is a group: it has values by name, not the value {value!r}.")
            elif full not in self:
                known = dict.fromkeys([*self.names, *(name.rpartition(".")[0] for name in self.names if "." in name)])
                raise CliError(f"{where}: unknown key {full!r}.{nearest(full, known)}")
            else:
                inner = self.restricted(value, to, where, f"{full}.") if inside else _named(value, self.names.get(full))
                if full in to:
                    kept[key] = inner
        return kept


def _named(value: Any, kind: Any) -> Any:
    """Returns a value, with strings as its keys if its type is that of a dict of names: YAML reads `1:` as a number."""
    kinds = (kind, *typing.get_args(kind))
    if isinstance(value, Mapping) and any(
        typing.get_origin(one) is dict and typing.get_args(one)[0] is str for one in kinds
    ):
        return {key if isinstance(key, str) else json.dumps(key): one for key, one in value.items()}
    return value


def _split_files(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the files of `--config` out of the arguments."""
    files, rest, tokens = [], [], iter(argv)
    for token in tokens:
        name, given, path = token.partition("=")
        if name != "--config":
            rest.append(token)
            continue
        path = path if given else next(tokens, "")
        if not path:
            raise CliError("--config needs the path of a file.")
        files.append(path)
    return files, rest


def _read(path: str) -> dict[str, Any]:
    load = require("jsonargparse", "the command line").get_loader("yaml")
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = load(text)
    except Exception as error:
        raise CliError(f"the configuration file {path} cannot be read: {error}") from error
    _check_doubled(text, path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise CliError(f"the configuration file {path} must be a mapping of groups, such as `fit: {{epochs: 10}}`.")
    return values


def _check_doubled(text: str, path: str) -> None:
    """Checks that no mapping of a YAML document has a key twice: YAML's loaders take the last one without a word.

    Raises:
        CliError: naming the key and both lines.
    """
    yaml = require("yaml", "the command line")
    waiting = [("", yaml.compose(text, Loader=yaml.SafeLoader))]
    seen: set[int] = set()  # an alias is its node once more
    while waiting:
        name, node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(f"{name}[{i}]", one) for i, one in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                full, line = f"{name}.{key.value}".lstrip("."), key.start_mark.line + 1
                one = (key.tag, str(key.value))
                if one in lines:
                    raise CliError(
                        f"the configuration file {path} has the key {full} twice, in the lines {lines[one]} and "
                        f"{line}: remove one, or join what is below them."
                    )
                lines[one] = line
                waiting.append((full, value))


def _merge(into: dict[str, Any], values: Mapping[str, Any], whole: Collection[str], path: str = "") -> None:
    """Writes the values of a configuration over those of another; the values of the options `whole` as a whole."""
    for key, value in values.items():
        full = f"{path}{key}"
        if isinstance(value, Mapping) and isinstance(into.get(key), dict) and full not in whole:
            _merge(into[key], value, whole, f"{full}.")
        else:
            into[key] = copy.deepcopy(value)
