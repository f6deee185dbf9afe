"""Modules of treex, which `scripts/install_needs.sh treex` installs: its requirements exclude current versions."""

import functools
import subprocess
import sys

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg
from elegy.adapters import TreexModule, load_treex

pytestmark = pytest.mark.needs(library="treex")

KEY, STEP = jax.random.key(0), jax.random.key(1)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@functools.cache
def net_class():
    """Made when a test runs, so that collecting the tests needs no treex."""
    tx = load_treex()

    class Net(tx.Module):
        layers: list[tx.Linear]  # treeo finds modules in a list by the annotation

        def __init__(self, rate=0.0):
            super().__init__()
            self.layers = [tx.Linear(4), tx.Linear(2)]
            self.norm = tx.BatchNorm(momentum=0.9)
            self.dropout = tx.Dropout(rate)

        def __call__(self, x):
            return self.layers[1](self.dropout(jnp.tanh(self.norm(self.layers[0](x)))))

    return Net


def net(rate=0.0):
    return net_class()(rate)


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def own_call(module, x, training):
    """The library's own call, with the Flax that it knows; returns the outputs and the module after it."""
    copy = module.copy().train(training)
    with flax.config.temp_flip_flag("return_frozendict", True):
        return copy(x), copy


@pytest.mark.parametrize("training", [True, False])
def test_apply_is_the_librarys_own(training):
    state = TreexModule(net()).init(KEY, X)
    assert jax.tree.map(jnp.shape, state.params["layers"]) == {
        "0": {"bias": (4,), "kernel": (3, 4)},
        "1": {"bias": (2,), "kernel": (4, 2)},
    }
    outputs, after = state.apply(STEP, X, training)
    expected, module = own_call(state.to_module(), X, training)
    np.testing.assert_array_equal(outputs, expected)
    for a, b in zip(arrays(after.batch_stats), arrays(module.batch_stats()), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_dropout_is_on_in_training_only():
    state = TreexModule(load_treex().Dropout(0.5)).init(KEY, X)
    one, two = (np.asarray(state.apply(key, X, True)[0]) for key in (KEY, STEP))
    assert (one == 0).any()
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(state.apply(STEP, X, False)[0], X)


def test_frozen_parameters_are_not_trained():
    module = net()
    module.layers[0] = module.layers[0].freeze()
    state = TreexModule(module).init(KEY, X)
    assert list(state.params["layers"]) == ["1"]
    assert set(state.variables["layers"]["0"]) == {"bias", "kernel"}


def test_an_initialised_module_keeps_its_values():
    with flax.config.temp_flip_flag("return_frozendict", True):
        module = net().init(STEP, X)
    expected = arrays(module.parameters())
    for state in (TreexModule(module).init(KEY, X), TreexModule(net(), variables=module).init(KEY, X)):
        for a, b in zip(arrays(state.params), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda tx: tx.MLP([5, 2]),
        lambda tx: tx.Sequential(tx.Linear(4), jax.nn.relu, tx.LayerNorm(), tx.Linear(2)),
        lambda tx: tx.FlaxModule(nn.Dense(2)),
        lambda tx: net(0.2),
    ],
)
def test_training_lowers_the_loss(make):
    y = X[:, :2] * 2 + 1
    trainer = eg.Trainer(make(load_treex()), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.05))
    losses = trainer.fit(X, y, batch_size=8, epochs=40, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2


def test_training_is_the_bare_loops():
    y = X[:, :2]
    module = TreexModule(net())
    trainer = eg.Trainer(module, loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.05))
    trainer.init_on_batch(X, y)
    reference = trainer.state.to_module()

    def loss(params, module):
        out, after = own_call(module.merge(params), X, True)
        return jnp.mean((out - y) ** 2), after

    for _ in range(3):
        params = reference.parameters()
        grads, reference = jax.grad(loss, has_aux=True)(params, reference)
        reference = reference.merge(jax.tree.map(lambda p, g: p - 0.05 * g, params, grads))
    trainer.fit(X, y, batch_size=8, epochs=3, verbose=0)
    trained = trainer.state.to_module()
    for kind in ("parameters", "batch_stats"):
        for a, b in zip(arrays(getattr(trained, kind)()), arrays(getattr(reference, kind)()), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)  # compiled against operation by operation


def test_other_objects_and_variables_are_refused():
    tx = load_treex()
    with pytest.raises(TypeError, match=r"needs a treex\.Module"):
        TreexModule(lambda x: x)
    with pytest.raises(ValueError, match="no values yet"):
        TreexModule(net()).to_module()
    with flax.config.temp_flip_flag("return_frozendict", True):
        other = tx.Linear(5).init(KEY, X)
    with pytest.raises(ValueError, match=r"params/kernel: given float32\[3,5\], but the module has float32\[3,2\]"):
        TreexModule(tx.Linear(2), variables=other).init(KEY, X)


def test_what_was_lent_for_the_import_is_taken_back():
    script = (
        "import sys, jax, elegy.adapters as a, flax.linen as nn; tx = a.load_treex(); "
        "assert not hasattr(jax, 'tree_map'), 'jax'; assert not hasattr(nn.linear, 'zeros'), 'flax'; "
        "assert 'numpy.lib.arraysetops' not in sys.modules; import jax._src.numpy.lax_numpy as n; n.argmax; "
        "assert a.load_treex() is tx"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
