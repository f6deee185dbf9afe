"""What a type checker knows of a user's own classes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from mypy import api

import elegy as eg

SOURCE = """
from __future__ import annotations

import jax
import jax.numpy as jnp

import elegy as eg


class Counter(eg.Pytree):
    value: jax.Array
    name: str = eg.static_field(default="c")
    values: list[int] = eg.field(default_factory=list)

    def next(self) -> Counter:
        return self.replace(value=self.value + 1)


class Model(eg.ElegyModule):
    accuracy: eg.metrics.Accuracy = eg.field(default_factory=eg.metrics.Accuracy)
    features: int = eg.static_field(default=1, kw_only=True)

    def init(self, key: jax.Array, inputs: object) -> Model:
        return self.replace(params={"w": jnp.zeros(self.features)})


class Own(eg.Pytree):
    a: int

    def __init__(self, b: int):
        self.a = b


counter = Counter(jnp.zeros(()), name="x", values=[1])
reveal_type(counter.name)  # str
reveal_type(counter.values)  # list[int]
reveal_type(counter.replace(name="y"))  # Counter
reveal_type(counter.next())  # Counter
Counter()  # Missing positional argument "value"
Counter(jnp.zeros(()), nme="x")  # Unexpected keyword argument "nme"
Counter(jnp.zeros(()), name=3)  # incompatible type "int"; expected "str"
model = Model(features=3)
reveal_type(model.accuracy)  # Accuracy
reveal_type(model.replace(params=None))  # Model
Model(features="3")  # incompatible type "str"; expected "int"
reveal_type(Own(3).a)  # int
Own(a=3)  # Unexpected keyword argument "a"
"""


def test_the_package_says_that_it_is_typed():
    assert Path(eg.__file__).with_name("py.typed").exists()


@pytest.mark.slow
def test_mypy_knows_the_fields_of_a_users_classes(tmp_path, monkeypatch):
    file = tmp_path / "users.py"
    file.write_text(SOURCE)
    monkeypatch.setenv("MYPYPATH", str(Path(eg.__file__).parents[1]))
    out, err, _ = api.run(["--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={tmp_path}", str(file)])
    said = dict(re.findall(r"users\.py:(\d+): (?:note|error): (.*)", out))
    expected = {
        str(number): line.rpartition("  # ")[2] for number, line in enumerate(SOURCE.splitlines(), 1) if "  # " in line
    }
    assert said.keys() == expected.keys(), out + err
    for number, text in expected.items():
        assert text in said[number]


def test_signatures_are_those_of_the_constructors():
    huber = inspect.signature(eg.losses.Huber)
    assert list(huber.parameters) == ["delta", "reduction", "weight", "name"]
    assert huber.parameters["delta"].default == 1.0
    assert list(inspect.signature(eg.losses.Huber()).parameters)[:2] == ["target", "preds"]  # of the call
