"""What type checkers and editors know of the code that a user writes."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
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

IN_AN_EDITOR = """
from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import elegy as eg


class Model(eg.ElegyModule):
    accuracy: eg.metrics.Accuracy = eg.field(default_factory=eg.metrics.Accuracy)
    features: int = eg.static_field(default=1, kw_only=True)

    def init(self, key: jax.Array, inputs: jax.Array) -> Model:
        return self.replace(params={"w": jnp.zeros(self.features)})


class Point(eg.Pytree):
    x: jax.Array
    scale: float = eg.field(default=1.0, kw_only=True)

    @eg.toplevel_mutable
    def scaled(self, factor: float) -> None:
        self.scale *= factor


class Largest(eg.metrics.Metric):
    value: jax.Array = eg.field(default_factory=lambda: jnp.array(-jnp.inf))

    def update(self, preds: jax.Array) -> Largest:
        return self.replace(value=jnp.maximum(self.value, preds.max()))

    def merge(self, other: Largest) -> Largest:
        return self.replace(value=jnp.maximum(self.value, other.value))

    def compute(self) -> jax.Array:
        return self.value


class Print(eg.Callback):
    batch_hooks_read = "logs"

    def on_train_batch_end(self, event: eg.Event) -> None:
        reveal_type(event.step)  # "int"
        reveal_type(event.logs["loss"])  # "float"
        reveal_type(event.trainer.stop_training)  # "bool"
        event.trainer.state = event.trainer.state.replace(features=event.trainer.state.features + 1)
        print(event.trainer.stp)  # Attribute "stp" is unknown
        print(event.stp)  # Attribute "stp" is unknown


x = np.zeros((3, 4))
model = Model(features=3)
trainer = eg.Trainer(model, eg.losses.Huber(delta=1), [Largest()], optax.adam(1e-3), seed=3, callbacks=[Print()])
reveal_type(trainer.evaluate(x, x))  # "dict[str, float]"
reveal_type(trainer.fit(x, x, epochs=2, callbacks=[eg.callbacks.EarlyStopping("loss")]))  # "History"
reveal_type(trainer.state.features)  # "int"
reveal_type(eg.Trainer(nn.Dense(1)).state)  # "ElegyModule"
makers: list[Callable[[], eg.Pytree]] = [eg.metrics.Accuracy, eg.losses.Huber, Largest, Model]
reveal_type(eg.losses.Huber())  # "Huber"
reveal_type(eg.losses.Huber()(target=x, preds=x))  # "Array"
reveal_type(eg.metrics.Mean().reset())  # "Mean"
reveal_type(eg.strategies.FSDP(min_size=3).min_size)  # "int"
reveal_type(Model().accuracy)  # "Accuracy"
reveal_type(Point(jnp.zeros(3), scale=2.0).replace(scale=3.0))  # "Point"
eg.losses.Huber(delt=1)  # No parameter named "delt"
eg.metrics.Accuracy(nme="a")  # No parameter named "nme"
eg.field(defualt=1)  # No parameter named "defualt"
eg.Trainer(model, seed="x")  # "Literal['x']" is not assignable to "int"
eg.Trainer(model, sed=1)  # No parameter named "sed"
eg.Trainer(model, "mse")  # cannot be assigned to parameter "loss"
eg.Trainer(model, metrics=["accuracy"])  # cannot be assigned to parameter "metrics"
eg.Trainer(model, optimizer="adam")  # cannot be assigned to parameter "optimizer"
eg.Trainer(model, {"a": [eg.losses.Huber(), optax.l2_loss]}, [{"b": Largest()}, optax.l2_loss], optax.adam(1e-3))
trainer.fit(x, x, epochs="2")  # "Literal['2']" is not assignable to "int"
reveal_type(Point(jnp.zeros(3)).scaled(2.0))  # "tuple[None, Point]"
Point(jnp.zeros(3)).scaled("2")  # "Literal['2']" is not assignable to "float"
Point(jnp.zeros(3), 2.0)  # Expected 1 positional argument
Model(3)  # "Literal[3]" is not assignable to "Accuracy"
Model(features="3")  # "Literal['3']" is not assignable to "int"
"""


def expected(source: str) -> dict[int, str]:
    """The text that a checker reports, by the number of the line: the comment at its end."""
    return {n: line.rpartition("  # ")[2] for n, line in enumerate(source.splitlines(), 1) if "  # " in line}


def test_the_package_says_that_it_is_typed():
    assert Path(eg.__file__).with_name("py.typed").exists()


@pytest.mark.slow
def test_mypy_knows_the_fields_of_a_users_classes(tmp_path, monkeypatch):
    file = tmp_path / "users.py"
    file.write_text(SOURCE)
    monkeypatch.setenv("MYPYPATH", str(Path(eg.__file__).parents[1]))
    out, err, _ = api.run(["--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={tmp_path}", str(file)])
    said = {int(n): text for n, text in re.findall(r"users\.py:(\d+): (?:note|error): (.*)", out)}
    assert said.keys() == expected(SOURCE).keys(), out + err
    for number, text in expected(SOURCE).items():
        assert text in said[number]


@pytest.mark.slow
def test_an_editor_knows_what_a_user_calls(tmp_path):
    (tmp_path / "users.py").write_text(IN_AN_EDITOR)
    config = {"extraPaths": [str(Path(eg.__file__).parents[1])], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    checker = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*checker, "-p", tmp_path], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    said = {diagnostic["range"]["start"]["line"] + 1: diagnostic["message"] for diagnostic in found}
    assert said.keys() == expected(IN_AN_EDITOR).keys(), said
    for number, text in expected(IN_AN_EDITOR).items():
        assert text in said[number]


def test_signatures_are_those_of_the_constructors():
    huber = inspect.signature(eg.losses.Huber)
    assert list(huber.parameters) == ["delta", "reduction", "weight", "name"]
    assert huber.parameters["delta"].default == 1.0
    assert list(inspect.signature(eg.losses.Huber()).parameters)[:2] == ["target", "preds"]  # of the call
