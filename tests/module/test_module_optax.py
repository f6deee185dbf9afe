"""Every gradient transformation of Optax, in a managed step and in a bare loop."""

from __future__ import annotations

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import elegy as eg

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 2)).astype(np.float32)
Y = RNG.normal(size=(6, 2)).astype(np.float32)
PARAMS = {name: RNG.normal(size=(2, 2)).astype(np.float32) for name in "wv"}  # of one shape: fewer compilations
STEPS = 3


def loss_of(params):
    return jnp.mean((jnp.tanh(X @ params["w"]) @ params["v"] - Y) ** 2)


# What the parameters without a default are called, over all factories.
REQUIRED = {
    "learning_rate": 0.05,
    "inner": optax.sgd(0.1),
    "optimizer": optax.sgd(0.1),
    "base_optimizer": optax.sgd(0.1),
    "fast_optimizer": optax.sgd(0.1),
    "tx": optax.polyak_sgd(0.3),
    "adv_optimizer": optax.sgd(0.05),
    "transforms": {"a": optax.sgd(0.1), "b": optax.adam(0.1)},
    "param_labels": {"w": "a", "v": "b"},
    "mask": {"w": True, "v": False},
    "freeze_mask": {"w": True, "v": False},
    "should_transform_fn": lambda step, **extra: step % 2 == 0,
    "measure": optax.tree.norm,
    "measure_name": "norm",
    "step_size_fn": lambda step: -0.1 / (step + 1),
    "step_size": -0.1,
    "sync_period": 2,
    "slow_step_size": 0.5,
    "max_consecutive_errors": 3,
    "threshold": 0.5,
    "clipping": 0.1,
    "max_delta": 0.1,
    "max_norm": 0.1,
    "decay": 0.9,
}
ARGUMENTS = {  # what wrappers and some others take in place of the defaults
    "add_noise": lambda f: f(0.01, 0.55, key=0),
    "noisy_sgd": lambda f: f(0.05, key=0),
    "inject_hyperparams": lambda f: f(optax.adam)(learning_rate=0.1),
    "chain": lambda f: f(optax.clip(0.1), optax.polyak_sgd(0.3)),
    "named_chain": lambda f: f(("clip", optax.clip(0.1)), ("sgd", optax.sgd(0.1))),
    "stateless": lambda f: f(lambda updates, params: jax.tree.map(lambda u, p: -0.1 * (u + p), updates, params)),
    "stateless_with_tree_map": lambda f: f(lambda update, param: -0.1 * (update + param)),
    "galore": lambda f: f(0.05, rank=1),
    "scale_by_galore": lambda f: f(rank=1),
    "scale_by_muon": lambda f: f(
        weight_dimension_numbers={name: optax.contrib.MuonDimensionNumbers() for name in PARAMS}
    ),
    "lbfgs": lambda f: f(memory_size=2, linesearch=optax.scale_by_zoom_linesearch(3)),
    "scale_by_backtracking_linesearch": lambda f: optax.chain(optax.sgd(1.0), f(3, store_grad=True)),
    "scale_by_zoom_linesearch": lambda f: optax.chain(optax.sgd(1.0), f(3)),
    "monitor": lambda f: f({"norm": optax.tree.norm, "mean": optax.transforms.measure_with_ema(optax.tree.norm, 0.9)}),
}
LEFT_OUT = {
    "differentially_private_aggregate": "needs the gradients of each example",
    "dpsgd": "needs the gradients of each example",
    "measure_with_ema": "a measure for `optax.monitor`",
    "inject_stateful_hyperparams": "deprecated by Optax",
    "optimistic_adam": "deprecated by Optax",
}
WRAPPED = {
    "lookahead in a chain": lambda: optax.chain(optax.clip(0.1), optax.lookahead(optax.adam(0.1), 2, 0.5)),
    "opaque sam": lambda: optax.contrib.sam(optax.adam(0.1), optax.sgd(0.05), sync_period=3, opaque_mode=True),
    "sam in a chain": lambda: optax.chain(optax.clip(0.1), optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))),
    "opaque sam in a chain": lambda: optax.chain(
        optax.clip(0.1), optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True)
    ),
    "several steps": lambda: optax.MultiSteps(optax.polyak_sgd(0.3), 2),
}

VALUE = ("polyak_sgd", "scale_by_polyak", "momo", "momo_adam", "reduce_on_plateau", "chain", "several steps")
VALUE += ("with_extra_args_support",)
SEARCH = ("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch")


def extra_arguments(name, value, grads):
    """What Optax's documentation tells the user to pass."""
    if name in VALUE:
        return {"value": value}
    if name in SEARCH:
        return {"value": value, "grad": grads, "value_fn": loss_of}
    if name == "sophia":
        return {"obj_fn": loss_of}
    return {"grad_fn": jax.grad(lambda params, _: loss_of(params))} if name.startswith("opaque sam") else {}


def factories():
    found = {}
    for module in (optax, optax.contrib, optax.transforms):
        for name in dir(module):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                factory = getattr(module, name)
            if name.startswith("_") or not inspect.isfunction(factory) or name in LEFT_OUT:
                continue
            if "GradientTransformation" in str(inspect.signature(factory).return_annotation) or name in ARGUMENTS:
                found[name] = factory
    return found


FACTORIES = factories()


def made(name):
    if name in WRAPPED:
        return WRAPPED[name]()
    factory = FACTORIES[name]
    if name in ARGUMENTS:
        return ARGUMENTS[name](factory)
    parameters = inspect.signature(factory).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return factory(**{parameter: REQUIRED[parameter] for parameter in needed})


class Model(eg.ElegyModule):
    def managed_init_step(self, key, batch):
        return self.replace(params=jax.tree.map(jnp.asarray, PARAMS))

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return loss_of(self.params), self


def bare(name):
    """The loop of Optax's guides; the parameters of `optax.lookahead` are pairs."""
    tx, pairs = made(name), "lookahead" in name
    params = jax.tree.map(jnp.asarray, PARAMS)
    params = optax.LookaheadParams.init_synced(params) if pairs else params
    state = tx.init(params)
    for _ in range(STEPS):
        value, grads = jax.value_and_grad(loss_of)(params.fast if pairs else params)
        updates, state = tx.update(grads, state, params, **extra_arguments(name, value, grads))
        params = optax.apply_updates(params, updates)
    return params.fast if pairs else params


SHORT = {*WRAPPED, *VALUE, *SEARCH, "sophia", "lookahead", "sam", "adam"}
NAMES = [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in (*FACTORIES, *WRAPPED)]


@pytest.mark.parametrize("name", NAMES)
def test_every_transformation_trains_as_in_a_bare_loop(name):
    state = Model(optimizer=eg.Optimizer(made(name))).init_step(jax.random.key(0), X)
    for _ in range(STEPS):
        _, state = state.train_step(X, 0, 0)
    expected = bare(name)
    for leaf, value in expected.items():
        np.testing.assert_allclose(state.params[leaf], value, rtol=1e-5, atol=1e-7)


def test_lookahead_keeps_its_slow_parameters(caplog):
    state = Model(optimizer=eg.Optimizer(optax.lookahead(optax.sgd(0.1), 2, 0.5))).init_step(jax.random.key(0), X)
    assert not caplog.records  # Optax warns of parameters that are no pair
    for _ in range(2):
        np.testing.assert_array_equal(state.optimizer.state.slow["w"], PARAMS["w"])
        _, state = state.train_step(X, 0, 0)
    params = jax.tree.map(jnp.asarray, PARAMS)
    for _ in range(2):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss_of)(params))
    middle = jax.tree.map(lambda fast, slow: (fast + slow) / 2, params, PARAMS)
    for name in PARAMS:
        np.testing.assert_allclose(state.optimizer.state.slow[name], middle[name], rtol=1e-5)
        np.testing.assert_allclose(state.params[name], middle[name], rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.masked(tx, {"w": True, "v": False}),
        lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "v": "b"}),
    ],
)
def test_lookahead_where_optax_cannot_update_pairs_is_named(wrap):
    trainer = eg.Trainer(Model(), optimizer=wrap(optax.lookahead(optax.sgd(0.1), 2, 0.5)))
    with pytest.raises(TypeError, match=r"contains optax\.lookahead.*works alone.*Write `optax\.lookahead"):
        trainer.fit(X, Y, verbose=0)


def test_gradients_of_each_example_are_refused_by_name():
    tx = optax.chain(optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0), optax.sgd(0.1))
    trainer = eg.Trainer(Model(), optimizer=tx)
    with pytest.raises(TypeError, match=r"differentially_private_aggregate.*gradient of each example.*core level"):
        trainer.fit(X, Y, verbose=0)
    assert trainer.step == 0


def test_a_wrong_type_within_a_transformation_keeps_its_message():
    def update(updates, state, params=None, **extra):
        return jax.tree.map(lambda u: u.nothing(value=1), updates), state

    def strict(updates, state, params=None, *, needed):
        return updates, state

    for one, message in ((update, "nothing"), (strict, "missing 1 required keyword-only argument: 'needed'")):
        tx = optax.GradientTransformationExtraArgs(lambda params: (), one)
        with pytest.raises((TypeError, AttributeError), match=message):
            Model(optimizer=eg.Optimizer(tx)).init_step(jax.random.key(0), X).train_step(X, 0, 0)
