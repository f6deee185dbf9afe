"""Labels that were passed among the inputs: the error says so, whoever raises it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg

X, Y = np.zeros((8, 4), np.float32), np.zeros(8, np.int32)


def trainer() -> eg.Trainer:
    linear = (lambda key: {"w": jnp.zeros((4, 2))}, lambda params, x: x @ params["w"])
    return eg.Trainer(linear, loss=eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1))


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("tuple", lambda trainer: trainer.fit((X, Y), verbose=0)),
        ("list", lambda trainer: trainer.fit(X, Y, validation_data=[X, Y], verbose=0)),
        ("tuple", lambda trainer: trainer.evaluate((X, Y), verbose=0)),
        ("tuple", lambda trainer: trainer.predict((X, Y))),
    ],
    ids=["fit", "validation", "evaluate", "predict"],
)
def test_labels_among_the_inputs_are_pointed_out(kind, call):
    with pytest.raises(TypeError) as caught:
        call(trainer())
    assert any(f"a {kind} of 2" in note and "`fit(x, y)`" in note for note in caught.value.__notes__)


def test_other_errors_are_left_alone():
    ours = trainer()
    ours.fit(X, Y, verbose=0)
    with pytest.raises(TypeError, match="shape") as caught:
        ours.evaluate(X[:, :3], Y, verbose=0)
    assert not any("labels" in note for note in getattr(caught.value, "__notes__", []))
