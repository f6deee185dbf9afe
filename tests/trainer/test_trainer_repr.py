"""What a trainer says about itself."""

import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import Core, High, compilations, regression, trainer_of
from flax import nnx

import elegy as eg

X, Y = regression(16)
MODULES = {
    "High": High,
    "LinenModule(Dense)": lambda: nn.Dense(2),
    "NNXModule(Linear)": lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
    "EquinoxModule(Linear)": lambda: eqx.nn.Linear(3, 2, key=jax.random.key(0)),
    "HaikuModule": lambda: hk.transform(lambda x: hk.Linear(2)(x)),
    "FunctionalModule": lambda: (lambda key, x: {"w": jnp.ones((3, 2))}, lambda params, x: x @ params["w"]),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_module_and_the_strategy_are_named(name):
    trainer = eg.Trainer(MODULES[name](), strategy="eager")
    assert repr(trainer).startswith(f"<Trainer of {name}, strategy Eager, ")
    if name != "NNXModule(Linear)":
        assert repr(trainer).endswith("not initialised>")


@pytest.mark.parametrize("level", [High, Core])
def test_progress_is_shown_without_running_anything(level, monkeypatch):
    trainer = trainer_of(level)
    trainer.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    monkeypatch.setattr(type(trainer._session.buffer), "get", None)  # to hand out the state costs the next step a copy
    with compilations() as names, jax.transfer_guard("disallow_explicit"):
        assert repr(trainer) == f"<Trainer of {level.__name__}, strategy Jit, step 4, epoch 2>"
    assert names == []


def test_after_pickling_it_is_the_same(tmp_path):
    trainer = eg.Trainer(nn.Dense(2), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.fit(X, Y, batch_size=8, verbose=0)
    trainer.save_pickle(tmp_path / "trainer")
    assert (
        repr(eg.load(tmp_path / "trainer", allow_code=True))
        == repr(trainer)
        == "<Trainer of LinenModule(Dense), strategy Jit, step 2, epoch 1>"
    )


def test_a_subclass_has_its_own_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert repr(eg.Model(High())) == "<Model of High, strategy Jit, not initialised>"
    np.testing.assert_equal(repr(type("Mine", (eg.Trainer,), {})(High()))[:6], "<Mine ")
