"""What a trainer holds while it lives, and that a dropped one frees all of it, as a loop by hand does."""

import gc
import weakref

import equinox as eqx
import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from haiku import Linear

import elegy as eg

WIDTH = 1237
"""The length of an axis that no other test has."""

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = X.sum(1, keepdims=True)


@pytest.fixture(autouse=True, scope="module")
def only_what_these_tests_make():
    """Sets aside what earlier tests left: a collection takes seconds where thousands of tests ran before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def arrays():
    """How many arrays with the axis are on the devices."""
    return sum(WIDTH in array.shape for array in jax.live_arrays())


class Box:
    """Something of the user's that holds arrays and that JAX cannot look into."""

    def __init__(self):
        self.table = jnp.ones((3, WIDTH))


class Own(eg.ElegyModule):
    box: eg.Static = eg.static_field()

    def init(self, key, inputs):
        return self.replace(params={"w": jnp.zeros((WIDTH, 1))})

    def apply(self, key, inputs, training):
        return inputs @ self.box.value.table @ self.params["w"], self


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.Dense(WIDTH)(x))


def equinox_module():
    keys = jax.random.split(jax.random.key(0))
    return eqx.nn.Sequential([eqx.nn.Linear(3, WIDTH, key=keys[0]), eqx.nn.Linear(WIDTH, 1, key=keys[1])])


def nnx_module():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(3, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 1, rngs=rngs))


def linen(box):
    module = Wide()
    return {"module": module, "variables": module.init(jax.random.key(0), X)}


def haiku(box):
    module = hk.transform(lambda x: Linear(1)(x @ box.table))
    return {"module": module, "variables": module.init(jax.random.key(0), X)}


def functions(box):
    def init(key):
        return {"w": jnp.zeros((WIDTH, 1))}

    def apply(params, x):
        return x @ box.table @ params["w"]

    return {"module": (init, apply), "variables": {"w": jnp.ones((WIDTH, 1))}}


def optimizer(box):
    def scale(updates, state, params=None):
        return jax.tree.map(lambda u: u * box.table[0, 0], updates), state

    tx = optax.chain(optax.sgd(0.1), optax.GradientTransformation(lambda params: optax.EmptyState(), scale))
    return {"module": Wide(), "optimizer": tx}


MAKERS = {
    "linen": linen,
    "nnx": lambda box: {"module": nnx_module()},
    "equinox": lambda box: {"module": equinox_module()},
    "equinox variables": lambda box: {"module": equinox_module(), "variables": equinox_module()},
    "haiku": haiku,
    "functions": functions,
    "a static field": lambda box: {"module": Own(eg.Static(box))},
    "optimizer": optimizer,
    "loss": lambda box: {"module": Wide(), "loss": lambda target, preds: (target - preds) ** 2 * box.table[0, 0]},
    "metric": lambda box: {"module": Wide(), "metrics": lambda target, preds: target * box.table[0, 0]},
}


def use(box, make, **kwargs):
    given = {"loss": eg.losses.MeanSquaredError(), "optimizer": optax.sgd(0.1), **make(box), **kwargs}
    trainer = eg.Trainer(**given)
    trainer.summary(X, return_repr=True)
    trainer.fit(X, Y, batch_size=4, validation_data=(X, Y), verbose=0)
    trainer.predict(X, batch_size=4)
    trainer.train_on_batch(X, Y)
    return weakref.ref(trainer)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.some(4)
def test_a_dropped_trainer_frees_its_arrays(kind):
    gc.collect()
    before, box = arrays(), Box()
    dropped = [use(box, MAKERS[kind]), weakref.ref(box)]
    del box
    gc.collect()
    assert [one() for one in dropped] == [None, None]
    assert arrays() == before


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["eager", "data_parallel", "fsdp"])
def test_a_dropped_trainer_frees_its_arrays_under_every_strategy(strategy):
    gc.collect()
    before, box = arrays(), Box()
    use(box, MAKERS["a static field"], strategy=strategy)
    use(box, MAKERS["linen"], strategy=strategy)
    seen = weakref.ref(box)
    del box
    gc.collect()
    assert seen() is None
    assert arrays() == before


class Counts(eg.callbacks.Callback):
    """How many arrays with the axis there are after each step."""

    def __init__(self):
        self.counts = []

    def on_train_batch_end(self, event):
        gc.collect()
        self.counts.append(arrays())


@pytest.mark.parametrize("strategy", ["jit", "fsdp"])
@pytest.mark.parametrize("kind", ["linen", "nnx", "equinox"])
@pytest.mark.some(3)
def test_parameters_exist_once_beside_what_the_user_keeps(kind, strategy):
    makers = {
        "linen": linen,
        "nnx": lambda _: {"module": nnx_module()},
        "equinox": lambda _: {"module": equinox_module()},
    }
    gc.collect()
    before, counts = arrays(), Counts()
    given = {
        "loss": eg.losses.MeanSquaredError(),
        "optimizer": optax.sgd(0.1),
        "strategy": strategy,
        **makers[kind](None),
    }
    theirs = arrays() - before
    assert theirs == 3  # two kernels and a bias
    trainer = eg.Trainer(**given, callbacks=[counts])
    trainer.fit(X, Y, batch_size=2, verbose=0)
    assert counts.counts == [before + theirs + 3] * 3
    del given, trainer
    gc.collect()
    assert arrays() == before
    given = {"loss": eg.losses.MeanSquaredError(), "optimizer": optax.sgd(0.1), "strategy": strategy}
    trainer = eg.Trainer(**makers[kind](None), **given, callbacks=[counts])
    trainer.fit(X, Y, batch_size=2, verbose=0)
    assert counts.counts[3:] == [before + 3] * 3


@pytest.mark.needs(library="treex")
def test_a_dropped_trainer_of_a_treex_module_frees_its_arrays():
    tx = eg.adapters.load_treex()
    gc.collect()
    before = arrays()
    with flax.config.temp_flip_flag("return_frozendict", True):
        made = {"module": tx.Linear(WIDTH).init(jax.random.key(0), X)}
    made["loss"] = lambda target, preds: (target - preds[:, :1]) ** 2
    use(None, lambda _: made)
    made.clear()
    gc.collect()
    assert arrays() == before
