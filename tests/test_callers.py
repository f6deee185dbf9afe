"""Warnings name the line of the user's program, whatever of Elegy and JAX lies between."""

from __future__ import annotations

import ast
import linecache
import warnings
from pathlib import Path

import flax.linen as nn
import numpy as np
import optax
import pytest

import elegy as eg

X = np.ones((8, 3), np.float32)
Y = np.ones((8, 1), np.float32)


def make(**kwargs):
    options = {"loss": eg.losses.MeanSquaredError(), "optimizer": optax.sgd(0.1), **kwargs}
    return eg.Trainer(nn.Dense(1, name="head"), **options)


class Typo(eg.Callback):
    def on_epoch_ends(self, event):
        pass


def partial(trainer):
    trainer.load_weights({"params": {"head": {"kernel": np.ones((3, 1), np.float32)}}}, strict=False)
    trainer.fit(X, Y, verbose=0)  # here


def hook(trainer):
    trainer.fit(X, Y, callbacks=[Typo()], verbose=0)  # here


def nan(trainer):
    trainer.fit(np.full_like(X, np.nan), Y, callbacks=[eg.callbacks.TerminateOnNaN()], verbose=0)  # here


def shapes(trainer):
    def loss(target, preds):
        return ((target - preds) ** 2).mean()  # the shapes (8,) and (8, 1) broadcast

    make(loss=loss).fit(X, Y[:, 0], verbose=0)  # here


def interval(trainer):
    trainer.fit(X, Y, callbacks=[eg.callbacks.Profiler("traces", start=100)], verbose=0)  # here


def nan_of_a_member(trainer):
    population = eg.Population(make(optimizer=optax.sgd(1e30)), seeds=2)
    population.fit(X, Y, epochs=4, verbose=0)  # here


@pytest.mark.parametrize("call", [partial, hook, nan, nan_of_a_member, shapes, interval])
def test_a_warning_names_the_line_of_the_program(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(make())
    assert caught
    for one in caught:
        assert one.filename == __file__, one.message
        assert linecache.getline(one.filename, one.lineno).rstrip().endswith("# here"), one.message


def test_no_warning_counts_frames_itself():
    for path in Path(eg.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                [written] = [ast.unparse(one.value) for one in node.keywords if one.arg == "stacklevel"]
                assert written == "stacklevel_of_caller()" or path.name == "model.py", f"{path}:{node.lineno}"
