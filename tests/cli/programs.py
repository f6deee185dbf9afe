"""A small program for the tests of the command line, and a call of it inside of the test's process."""

from __future__ import annotations

import sys
import textwrap

import pytest

import elegy as eg

PROGRAM = '''
import dataclasses, enum, pathlib
from typing import Any, Callable, Literal

import numpy as np
import optax

import elegy as eg
from boring_modules import High, regression


class Kind(enum.Enum):
    adam = 1
    sgd = 2


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rates.

    Args:
        first: the first rate.
    """

    first: float = 0.05
    others: tuple[float, ...] = ()


SEEN = {}


def build(scale: float = 1.0, act: Callable = abs, extra: Any = None, path: pathlib.Path | None = None):
    """Builds.

    Args:
        scale: a factor, in 100% of the cases.
    """
    SEEN["build"] = {"scale": scale, "act": act, "extra": extra, "path": path}
    return {"module": High(), "loss": eg.losses.MeanSquaredError()}


def optimizer(rates: Rates = Rates(), kind: Kind = Kind.adam):
    SEEN["optimizer"] = {"rates": rates, "kind": kind}
    return getattr(optax, kind.name)(rates.first)


def data(rows: int = 22, names: dict[str, int] | None = None):
    SEEN["data"] = {"rows": rows, "names": names}
    x, y = regression(rows)
    return {"inputs": x, "labels": y, "validation_data": regression(9, seed=5)}


def tuples():
    return High(), eg.losses.MeanSquaredError(), None, optax.adam(0.05)


def no_module():
    return {"modul": High()}


def seeded():
    return {"module": High(), "seed": 3}


def nothing():
    pass


def made():
    return eg.Trainer(High(), eg.losses.MeanSquaredError())


def untyped(width):
    return High()


def of_functions(act: Callable):
    return High()
'''


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The path of the program; the process is in its directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "prog.py").write_text(textwrap.dedent(PROGRAM))
    yield "prog.py"
    for name in ("elegy_program_prog", "package"):
        sys.modules.pop(name, None)


def call(*argv: str) -> None:
    eg.cli.main(argv=argv)


def seen() -> dict:
    """What the functions of the program were called with."""
    return sys.modules["elegy_program_prog"].SEEN
