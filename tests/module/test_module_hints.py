"""Labels that were passed among the inputs: the error says so, whoever raises it."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import elegy as eg


def nnx_linear():
    return nnx.Linear(4, 2, rngs=nnx.Rngs(0))


def eqx_linear():
    return eqx.nn.Linear(4, 2, key=jax.random.key(0))


X, Y = np.zeros((8, 4), np.float32), np.zeros(8, np.int32)


def trainer() -> eg.Trainer:
    linear = (lambda key: {"w": jnp.zeros((4, 2))}, lambda params, x: x @ params["w"])
    return eg.Trainer(linear, loss=eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1))


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("tuple", lambda trainer: trainer.fit((X, Y), verbose=0)),
        ("list", lambda trainer: trainer.fit([X, Y], verbose=0)),
        ("dict", lambda trainer: trainer.fit({"x": X, "y": Y}, verbose=0)),
        ("dict", lambda trainer: trainer.fit(lambda: iter([{"x": X, "y": Y}]), verbose=0)),
        ("tuple", lambda trainer: trainer.fit(X, Y, validation_data=((X, Y),), verbose=0)),
        ("tuple", lambda trainer: trainer.evaluate((X, Y), verbose=0)),
        ("tuple", lambda trainer: trainer.predict((X, Y))),
    ],
    ids=["fit", "fit, list", "fit, dict", "loader of dicts", "validation", "evaluate", "predict"],
)
def test_labels_among_the_inputs_are_pointed_out(kind, call):
    with pytest.raises(
        TypeError, match=rf"(?s)inputs are a {kind} of 2 \(.*float32\[8,4\].*int32\[8\]\).*`fit\(x, y\)`"
    ):
        call(trainer())


# JAX warns of a container in place of an array, where Flax asks for its shape, before it fails.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", [lambda: nn.Dense(2), nnx_linear, eqx_linear], ids=["linen", "nnx", "equinox"])
@pytest.mark.parametrize("inputs", [(X, Y), [X, Y], {"x": X, "y": Y}], ids=lambda v: type(v).__name__)
def test_modules_of_one_argument_say_what_they_were_given(build, inputs):
    ours = eg.Trainer(build(), loss=eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1))
    with pytest.raises((TypeError, ValueError)) as caught:
        ours.fit(inputs, verbose=0)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert f"The inputs are a {type(inputs).__name__} of 2" in said
    assert "`fit(x, y)`" in said
    assert ("use a dict" in said) == isinstance(inputs, list)


@pytest.mark.parametrize("batch", [[X, Y], (X, Y)], ids=["list", "tuple"])
def test_batches_may_be_lists(batch):
    ours, same = trainer(), trainer()
    ours.fit(lambda: iter([batch]), validation_data=batch, verbose=0)
    same.fit(X, Y, validation_data=(X, Y), batch_size=8, shuffle=False, verbose=0)
    assert ours.history.history == same.history.history


def test_errors_of_a_module_that_takes_the_container_keep_their_type():
    def apply(params, x, y):
        raise KeyError("gate")

    two = eg.Trainer((lambda key: {}, apply), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    with pytest.raises(KeyError, match="gate") as caught:
        two.fit((X, X), Y, verbose=0)
    assert any("a tuple of 2" in note for note in caught.value.__notes__)


def test_other_errors_are_not_changed():
    ours = trainer()
    ours.fit(X, Y, verbose=0)
    with pytest.raises(TypeError, match="shape") as caught:
        ours.evaluate(X[:, :3], Y, verbose=0)
    assert not any("labels" in note for note in getattr(caught.value, "__notes__", []))
