"""Writes the values of options as YAML and as JSON that read back as the same values."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

from elegy.lazy import require

YAML = "elegy_yaml"
"""The name of the form of configuration files for jsonargparse."""

JSON = "elegy_json"
"""The name of the form of saved configurations."""


@functools.cache
def register() -> None:
    """Gives jsonargparse the forms.

    Its own YAML writer leaves the string `1e3` without quotes, because YAML 1.1 has no such number; its own reader
    takes it for one. Here the writer quotes by the rules of the reader.
    """
    jsonargparse, yaml = require("jsonargparse", "the command line"), require("yaml", "the command line")
    read = jsonargparse.get_loader("yaml")

    def read_or_text(text: str) -> Any:
        try:
            return read(text)
        except yaml.YAMLError:
            return text  # YAML's own rules quote it

    def represent(dumper: Any, text: str) -> Any:
        taken = "\n" not in text and not isinstance(read_or_text(text), str)
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if taken else None)

    own_dumper: Any = type("Dumper", (yaml.SafeDumper,), {})
    own_dumper.add_representer(str, represent)

    def write(value: Any) -> str:
        return yaml.dump(value, Dumper=own_dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)

    jsonargparse.set_loader(YAML, read, (yaml.YAMLError,))
    jsonargparse.set_dumper(YAML, write)
    jsonargparse.set_dumper(JSON, lambda value: json.dumps(with_text_keys(value)))


def flow_yaml(value: Any) -> str:
    """Writes a value as YAML: as JSON, but with infinity, NaN, and keys that are not strings.

    Example:
        >>> flow_yaml({"scales": {10: 0.1}, "bound": float("inf")})
        '{"scales": {10: 0.1}, "bound": .inf}'
    """
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{flow_yaml(key)}: {flow_yaml(one)}' for key, one in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(flow_yaml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return json.dumps(value)


def with_text_keys(value: Any) -> Any:
    """Returns a value whose keys are all strings, for JSON: `10` becomes `"10"`, and the string `"10"` gets quotes.

    Example:
        >>> with_text_keys({10: 0.1, "10": 0.2, "a": [{None: 1}]})
        {'10': 0.1, '"10"': 0.2, 'a': [{'null': 1}]}
    """
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) and _key(key) == key else json.dumps(key): with_text_keys(one)
            for key, one in value.items()
        }
    return [with_text_keys(one) for one in value] if isinstance(value, (list, tuple)) else value


def with_own_keys(value: Any) -> Any:
    """Returns the value that `with_text_keys` was given.

    Example:
        >>> with_own_keys({'10': 0.1, '"10"': 0.2, 'a': [{'null': 1}]})
        {10: 0.1, '10': 0.2, 'a': [{None: 1}]}
    """
    if isinstance(value, Mapping):
        return {_key(key): with_own_keys(one) for key, one in value.items()}
    return [with_own_keys(one) for one in value] if isinstance(value, list) else value


def _key(text: str) -> Any:
    try:
        key = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(key, (list, dict)) else key
