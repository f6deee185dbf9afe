"""Low-rank adapters: the updates of a loop written by hand, for every library, strategy and option of the Trainer."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, Managed, assert_same_bits, make_params, network, regression
from flax import nnx

import elegy as eg
from elegy.data import epoch_permutation
from elegy.errors import StepError

X, Y = regression(16)
RANK, ALPHA, RATE = 1, 3.0, 0.1


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.BatchNorm(use_running_average=not training, name="norm")(nn.Dense(4, name="body")(x))
        return nn.Dense(2, name="head")(jnp.tanh(x))


class NNX(nnx.Module):
    def __init__(self):
        self.body, self.head = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.head(jnp.tanh(self.norm(self.body(x))))


class Equinox(eqx.Module):
    body: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.body, self.head = eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])

    def __call__(self, x):
        return self.head(jnp.tanh(self.body(x)))


def haiku(x, is_training):
    x = hk.BatchNorm(True, True, 0.9, name="norm")(hk.Linear(4, name="body")(x), is_training)
    return hk.Linear(2, name="head")(jnp.tanh(x))


FUNCTIONS = (lambda key, x: make_params(key), network)

MODULES = {
    "linen": (Linen, "body/*"),
    "nnx": (NNX, "body/*"),
    "haiku": (lambda: hk.transform_with_state(haiku), "body/*"),
    "equinox": (Equinox, "body/*"),
    "functions": (lambda: FUNCTIONS, "w"),
    "elegy": (High, "w"),
}


def trainer_of(module, pattern, **kwargs):
    lora = {key: kwargs.pop(key) for key in ("train", "variables") if key in kwargs}
    kwargs = {"optimizer": optax.adam(RATE), **kwargs}
    return eg.Trainer(eg.LoRA(module, pattern, rank=RANK, alpha=ALPHA, **lora), eg.losses.MeanSquaredError(), **kwargs)


def by_hand(trainer, x=X, y=Y, *, epochs=2, batch_size=8, w=None, frozen=()):
    """Trains the adapters of a trainer with a first state of `network`: `(losses, adapters)`."""
    base = trainer.state.base.get_params()
    adapters = trainer.state.params["w"]
    tx, w = optax.adam(RATE), np.ones(len(x), np.float32) if w is None else w
    opt = tx.init({k: v for k, v in adapters.items() if k not in frozen})

    @jax.jit
    def step(adapters, opt, x, y, w):
        def loss(free):
            both = {**adapters, **free}
            preds = network({**base, "w": base["w"] + ALPHA / RANK * both["a"] @ both["b"]}, x)
            return jnp.sum(w * jnp.mean((preds - y) ** 2, -1)) / jnp.sum(w)

        free = {k: v for k, v in adapters.items() if k not in frozen}
        value, grads = jax.value_and_grad(loss)(free)
        updates, opt = tx.update(grads, opt, free)
        return value, {**adapters, **optax.apply_updates(free, updates)}, opt

    losses = []
    for epoch in range(epochs):
        order, total, weight = epoch_permutation(42, epoch, len(x)), 0.0, 0.0
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            value, adapters, opt = step(adapters, opt, x[rows], y[rows], w[rows])
            total, weight = total + value * w[rows].sum(), weight + w[rows].sum()
        losses.append(total / weight)
    return losses, adapters


SLOW = ("nnx", "haiku", "equinox")


@pytest.mark.parametrize(
    "library", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODULES]
)
def test_every_library_begins_as_its_base_trains_adapters_alone_and_merges(library, tmp_path):
    make, pattern = MODULES[library]
    module = make()
    base = eg.Trainer(module, eg.losses.MeanSquaredError())
    trainer = trainer_of(module, pattern)
    np.testing.assert_array_equal(trainer.predict(X), base.predict(X))
    before = trainer.state
    losses = trainer.fit(X, Y, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert_same_bits(trainer.state.base.get_params(), before.base.get_params())
    shapes = {leaf.shape for leaf in jax.tree.leaves(trainer.state.params)}
    assert {leaf.shape for leaf in jax.tree.leaves(trainer.state.optimizer.state)} - {()} == shapes
    merged = eg.Trainer(trainer.state.merge(), eg.losses.MeanSquaredError())
    np.testing.assert_allclose(merged.predict(X), trainer.predict(X), rtol=1e-5, atol=1e-6)
    losses = (one.evaluate(X, Y, verbose=0)["loss"] for one in (merged, trainer))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    if library == "linen":
        outputs = module.apply(trainer.variables(), X, training=False)
        np.testing.assert_allclose(outputs, trainer.predict(X), rtol=1e-5, atol=1e-6)
    trainer.save(tmp_path / "run")
    again = trainer_of(make(), pattern, seed=7)  # other base weights, until the checkpoint's replace them
    again.restore(tmp_path / "run")
    np.testing.assert_array_equal(again.predict(X), trainer.predict(X))


STRATEGIES = [
    "data_parallel",
    *(
        pytest.param(strategy, marks=pytest.mark.slow)
        for strategy in (
            "eager",
            "jit",
            eg.strategies.Sharded({"data": 4}),
            eg.strategies.FSDP({"data": 2}, min_size=1),
        )
    ),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda one: one if isinstance(one, str) else type(one).__name__)
def test_under_every_strategy_it_is_the_loop_by_hand(strategy):
    trainer = trainer_of(FUNCTIONS, "w", strategy=strategy)
    trainer.init_on_batch(X, Y)
    losses, adapters = by_hand(trainer)
    history = trainer.fit(X, Y, batch_size=8, epochs=2, verbose=0).history
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), trainer.state.params["w"], adapters
    )


def test_accumulation_weights_and_a_short_tail_are_the_loop_by_hand():
    x, y = regression(22)
    w = np.linspace(0, 2, 22).astype(np.float32)
    trainer = trainer_of(FUNCTIONS, "w", accumulate=3)
    trainer.init_on_batch(x, y)
    losses, adapters = by_hand(trainer, x, y, w=w)
    history = trainer.fit(x, y, sample_weight=w, batch_size=8, epochs=2, verbose=0).history
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), trainer.state.params["w"], adapters
    )


def test_frozen_and_averaged_adapters():
    trainer = trainer_of(FUNCTIONS, "w", freeze="*/a", averaging=eg.SWA())
    trainer.init_on_batch(X, Y)
    first = trainer.state.params["w"]["a"]
    _, adapters = by_hand(trainer, frozen=("a",), epochs=1)
    seen = []
    keep = eg.callbacks.LambdaCallback(
        on_train_batch_end=lambda event: seen.append(np.asarray(event.trainer.state.params["w"]["b"]))
    )
    trainer.fit(X, Y, batch_size=8, verbose=0, callbacks=[keep], steps_per_execution=1)
    np.testing.assert_array_equal(trainer.state.params["w"]["a"], first)
    np.testing.assert_allclose(trainer.state.params["w"]["b"], adapters["b"], rtol=1e-4, atol=1e-6)
    average = {"w": {"a": first, "b": np.mean(seen, 0)}}
    wanted = trainer.predict(X, weights=lambda state: average)
    np.testing.assert_allclose(trainer.predict(X, weights="averaged"), wanted, rtol=1e-5, atol=1e-6)


def test_under_a_precision_the_products_are_computed_in_it_and_the_base_is_stored_in_it():
    dtypes = []

    def apply(params, x):
        dtypes.append((params["w"].dtype, x.dtype))
        return network(params, x)

    for precision, stored in (("mixed_bfloat16", "float32"), ("bfloat16", "bfloat16")):
        trainer = trainer_of((FUNCTIONS[0], apply), "w", precision=precision)
        trainer.fit(X, Y, batch_size=8, verbose=0)
        assert {leaf.dtype.name for leaf in jax.tree.leaves((trainer.state.base, trainer.state.params))} == {stored}
        merged = eg.Trainer(trainer.state.merge(), precision=precision).predict(X).astype(np.float32)
        # The adapters are rounded to bfloat16 in the step, and not in `merge`.
        np.testing.assert_allclose(merged, trainer.predict(X).astype(np.float32), atol=0.03)
    assert set(dtypes) == {(jnp.dtype("bfloat16"),) * 2}


def test_a_part_may_be_trained_as_a_whole():
    """With a head that has all of its gradient, Optax on both parts by hand gives the same."""
    trainer = trainer_of(FUNCTIONS, "w", train="b", optimizer=optax.sgd(RATE))
    trainer.init_on_batch(X, Y)
    base, params = trainer.state.base.get_params(), trainer.state.params
    assert params.keys() == {"w", "b"}

    @jax.grad
    def gradient(params):
        weight = base["w"] + ALPHA / RANK * params["w"]["a"] @ params["w"]["b"]
        return jnp.mean((network({"w": weight, "b": params["b"]}, X) - Y) ** 2)

    for _ in range(2):
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient(params))
    trainer.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), trainer.state.params, params)


def test_the_base_weights_are_given_variables_or_the_state_of_a_trained_module():
    trained = eg.Trainer(Linen(), eg.losses.MeanSquaredError(), optimizer=optax.adam(RATE))
    trained.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    lora = eg.LoRA(Linen(), "*/kernel", rank=1, variables=trained.variables())
    for trainer in (
        eg.Trainer(lora),
        eg.Trainer(eg.LoRA(Linen(), "*/kernel", rank=1), variables=trained.variables()),
        eg.Trainer(eg.LoRA(trained.state, "*/kernel", rank=1)),
    ):
        np.testing.assert_array_equal(trainer.predict(X), trained.predict(X))
        assert trainer.state.optimizer is None
    with pytest.raises(ValueError, match="base weights once"):
        eg.Trainer(lora, variables=trained.variables())


def test_kernels_of_more_axes_are_matrices():
    """As a matrix of the first or the last axis and the others, an update has the rank of the adapter."""
    shapes = {"conv": (3, 3, 8, 6), "query": (8, 2, 4), "out": (2, 4, 8)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    trainer = eg.Trainer(eg.LoRA((lambda key: params, lambda params, x: x @ params["conv"][0, 0, :3, :2]), "*", rank=2))
    trainer.init_on_batch(X)
    rng = np.random.default_rng(0)
    state = trainer.state.replace(params=jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), trainer.state.params))
    matrices = {"conv": (72, 6), "query": (8, 8), "out": (8, 8)}
    for name, merged in state.merge().params.items():
        assert merged.shape == shapes[name]
        assert np.linalg.matrix_rank(np.asarray(merged - params[name]).reshape(matrices[name]), tol=1e-3) == 2
        assert {k: v.shape for k, v in state.params[name].items()} == {
            "a": (matrices[name][0], 2),
            "b": (2, matrices[name][1]),
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patterns": "bod"}, r"the pattern 'bod' matches no parameter.*There are 'b' and 'w'"),
        ({"patterns": ["w", "b"]}, r"only parameters with fewer than two axes, 'b'"),
        ({"patterns": "w", "train": "c"}, r"the pattern 'c' matches no parameter"),
        ({"patterns": "w", "rank": 2}, r"rank=2 is not below the sides of 'w', float32\[3,2\] as a matrix of 3 x 2"),
    ],
)
def test_patterns_that_do_not_fit_are_told_before_the_state_exists(arguments, message):
    trainer = eg.Trainer(
        eg.LoRA(FUNCTIONS, **{"rank": 1, **arguments}), eg.losses.MeanSquaredError(), optimizer=optax.sgd(1)
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit(X, Y, verbose=0)
    assert trainer.state.params is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank of LoRA"),
        ({"rank": 1.5}, TypeError, "rank of LoRA"),
        ({"alpha": "8"}, TypeError, "alpha of LoRA must be a number"),
        ({"alpha": -1.0}, ValueError, "alpha of LoRA must be positive"),
        ({"patterns": ()}, ValueError, "at least one pattern"),
        ({"patterns": 3}, TypeError, "patterns of LoRA takes patterns"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        eg.LoRA(**{"module": FUNCTIONS, "patterns": "w", "rank": 1, **arguments})


def test_a_module_with_steps_of_its_own_is_refused():
    with pytest.raises(StepError, match="Managed implements its init step at the managed level"):
        eg.Trainer(eg.LoRA(Managed(), "w", rank=1))
