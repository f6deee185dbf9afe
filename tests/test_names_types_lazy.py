"""The small modules of the ground floor: names, types, lazy imports, errors."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy as eg
from elegy import errors
from elegy.lazy import EXTRAS, is_instance_of, require
from elegy.names import array_name, name_of, path_name, snake_case, unique_names

# names


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("Accuracy", "accuracy"),
        ("MeanSquaredError", "mean_squared_error"),
        ("AUC", "auc"),
        ("MyAUCScore", "my_auc_score"),
        ("L1", "l1"),
        ("L1L2", "l1l2"),
        ("F1", "f1"),
        ("R2", "r2"),
        ("already_snake", "already_snake"),
        ("_Private", "_private"),
    ],
)
def test_snake_case(name, snake):
    assert snake_case(name) == snake


def a_function(target, preds): ...


class HasName:
    name = "given"


class Nameless:
    name = None

    def __call__(self): ...


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (a_function, "a_function"),
        (functools.partial(functools.partial(a_function, 1), 2), "a_function"),
        (HasName(), "given"),
        (Nameless(), "nameless"),
        (Nameless, "Nameless"),
    ],
)
def test_name_of(thing, name):
    assert name_of(thing) == name


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        ([], []),
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a_1", "a_2"]),
        (["a", "a_1", "a"], ["a", "a_1", "a_2"]),
        (["a", "a", "a_1"], ["a", "a_1", "a_1_1"]),
    ],
)
def test_unique_names(names, unique):
    assert unique_names(iter(names)) == unique
    assert len(set(unique)) == len(unique)


def test_path_name_of_a_pytree_and_of_a_bare_leaf():
    class Holder(eg.Pytree):
        inner: dict

    paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(Holder({"w": [1, 2]}))]
    assert paths == ["inner/w/0", "inner/w/1"]
    assert path_name(()) == "(root)"


# types


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, r"such as Every\(steps=100\), but it got no argument"),
        ({"steps": 1, "epochs": 2}, "but it got steps and epochs"),
        ({"steps": 0}, r"Every\(steps=0\).*positive"),
        ({"steps": -3}, "positive"),
        ({"steps": 2.5}, "whole number"),
        ({"epochs": True}, "positive number"),
        ({"seconds": "10"}, "positive number"),
        ({"seconds": 0.0}, "positive number"),
        ({"seconds": math.nan}, "positive number"),
        ({"steps": math.nan}, "positive number"),
        ({"steps": math.inf}, "whole number"),
        ({"steps": np.True_}, "positive number"),
    ],
)
def test_every_takes_one_positive_interval(kwargs, message):
    with pytest.raises(ValueError, match=message):
        eg.Every(**kwargs)


@pytest.mark.parametrize("unit", ["steps", "epochs", "examples", "seconds"])
def test_every_knows_its_unit_and_is_a_value(unit):
    every = eg.Every(**{unit: 5})
    assert every.unit == unit
    assert repr(every) == f"Every({unit}=5)"
    assert every == eg.Every(**{unit: 5})
    assert hash(every) == hash(eg.Every(**{unit: 5}))


@pytest.mark.parametrize(
    ("given", "value"),
    [({"steps": np.int64(5)}, 5), ({"epochs": 5.0}, 5), ({"seconds": np.float32(0.5)}, 0.5), ({"seconds": 5}, 5)],
)
def test_every_takes_the_numbers_of_numpy_and_holds_those_of_python(given, value):
    every = eg.Every(**given)
    (held,) = (getattr(every, name) for name in given)
    assert (held, type(held)) == (value, type(value))


@pytest.mark.parametrize("length", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2, 5, 20])
def test_every_is_due_when_a_multiple_of_the_interval_lies_in_the_step(length, stride):
    every = eg.Every(examples=length)
    for before in range(0, 60, stride):
        now = before + stride
        expected = any(n % length == 0 for n in range(before + 1, now + 1))
        assert every.due(before, now) == expected


# lazy


def test_a_library_that_was_not_imported_made_no_object(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # another test of this process may have imported it
    assert not is_instance_of(object(), "torch", "Tensor")
    assert "torch" not in sys.modules


def test_objects_are_recognised_by_the_loaded_library(monkeypatch):
    library = ModuleType("a_library")
    library.Thing = type("Thing", (), {})
    library.not_a_class = 3
    monkeypatch.setitem(sys.modules, "a_library", library)
    assert is_instance_of(library.Thing(), "a_library", "Other", "not_a_class", "Thing")
    assert not is_instance_of(object(), "a_library", "Thing")


def test_require_returns_a_module_or_says_what_to_install(monkeypatch):
    assert require("json", "reading JSON") is sys.modules["json"]
    monkeypatch.setitem(sys.modules, "haiku", None)
    with pytest.raises(ImportError, match=r"^A Haiku module needs the library 'haiku': .*elegy\[haiku\]"):
        require("haiku", "A Haiku module")
    with pytest.raises(ImportError, match=r"needs the library 'no_such_library': .*pip install no_such_library"):
        require("no_such_library.sub", "this")


def normalized(package):
    return re.sub(r"[-_.]+", "-", package).lower()  # as in PEP 503


def test_the_extras_that_messages_name_install_the_libraries():
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    providers = importlib.metadata.packages_distributions()
    for module, extra in EXTRAS.items():
        installs = {normalized(re.split(r"[<>=!~\[; ]", line)[0]) for line in project["optional-dependencies"][extra]}
        assert installs & set(map(normalized, providers[module])), (module, extra)


# errors


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (errors.FrozenError, (RuntimeError, AttributeError)),
        (errors.StepError, (RuntimeError,)),
        (errors.MissingMethodError, (NotImplementedError, RuntimeError)),
        (errors.CheckpointError, (ValueError,)),
    ],
)
def test_errors_are_of_the_builtin_kinds_too(error, kinds):
    assert issubclass(error, (errors.ElegyError, *kinds))
    for kind in kinds:
        assert issubclass(error, kind)


def test_arrays_are_written_as_jax_writes_them():
    for leaf in (jnp.zeros((2, 3), jnp.bfloat16), jnp.zeros((), bool), jax.random.key(0)):
        assert array_name(leaf) == str(jax.typeof(leaf))
    assert [array_name(v) for v in (1, 1.5, np.zeros(2))] == ["int32[]", "float32[]", "float64[2]"]
    assert [array_name(v) for v in ([1], None)] == ["a list", "None"]
