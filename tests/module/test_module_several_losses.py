"""Several losses of a managed step, against bare loops that differentiate each with respect to its own parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import regression
from some_cases import some

import elegy as eg
from elegy.errors import StepError
from elegy.strategies import FSDP, DataParallel

X, Y = regression(16)
BATCH = 8
GROUPS = {"maker/*": optax.adam(0.05), "judge/*": optax.sgd(0.1)}


def make_params():
    maker, judge = (jnp.sin(jnp.arange(6, dtype=jnp.float32) + shift).reshape(3, 2) for shift in (0, 1))
    return {"maker": {"w": maker}, "judge": {"w": judge, "b": jnp.zeros(2)}}


def losses_of(params, x, y):
    """A game: the judge predicts the labels, and the maker changes the inputs so that it fails."""
    made = x + jnp.tanh(x @ params["maker"]["w"]) @ params["maker"]["w"].T
    error = (jnp.tanh(made @ params["judge"]["w"]) + params["judge"]["b"] - y) ** 2
    return {"judge": jnp.mean(error), "maker": jnp.mean((made - x) ** 2) - 0.5 * jnp.mean(error)}


class Game(eg.ElegyModule):
    def managed_init_step(self, key, batch):
        return self.replace(params=make_params())

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return losses_of(self.params, *batch), self


def gradient(params, batch, name):
    return jax.grad(lambda own: losses_of({**params, name: own}, *batch)[name])(params[name])


def bare(epochs=2, frozen=()):
    params, means = make_params(), []
    states = {name: GROUPS[f"{name}/*"].init(params[name]) for name in params}
    for _ in range(epochs):
        for i in range(0, len(X), BATCH):
            batch = X[i : i + BATCH], Y[i : i + BATCH]
            means.append(losses_of(params, *batch))
            new = {}
            for name, part in params.items():
                grads = gradient(params, batch, name)
                updates, states[name] = GROUPS[f"{name}/*"].update(grads, states[name])
                new[name] = part if name in frozen else optax.apply_updates(part, updates)
            params = new
    return params, means


def train(epochs=2, cls=Game, optimizer=GROUPS, **options):
    trainer = eg.Trainer(cls(), optimizer=optimizer, **options)
    history = trainer.fit(X, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0).history
    return trainer, history


SETTINGS = {
    "jit": {},
    "eager": {"strategy": "eager"},
    "replicas": {"strategy": DataParallel(2)},
    "sharded": {"strategy": FSDP({"data": 2}, min_size=2), "accumulate": 2},
    "microbatches": {"accumulate": 3, "nonfinite": "raise"},
    "frozen": {"freeze": "judge/*"},
}


@pytest.mark.parametrize("name", some(SETTINGS, 3))
def test_each_part_gets_the_gradient_of_its_own_loss(name):
    trainer, history = train(**SETTINGS[name])
    params, means = bare(frozen=("judge",) if name == "frozen" else ())
    close = {"rtol": 1e-4, "atol": 1e-6}  # float32 sums of replicas and microbatches, in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), trainer.state.params, params)
    for loss in ("judge", "maker"):
        expected = np.array([step[loss] for step in means]).reshape(2, -1).mean(1)
        np.testing.assert_allclose(history[f"{loss}_loss"], expected, **close)
    total = np.array(history["judge_loss"]) + np.array(history["maker_loss"])
    np.testing.assert_allclose(history["loss"], total, **close)
    assert set(history) == {"loss", "judge_loss", "maker_loss"}


def test_float16_scales_every_loss():
    """The gradients of the two networks' float16 values, in a scale that doubles."""
    trainer, _ = train(precision=eg.Precision("float32", "float16", "float32", loss_scale=256.0, growth_interval=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.02), trainer.state.params, bare()[0])
    assert trainer.state.dynamic_loss_scale.value == 1024


def step_of(returned):
    class Wrong(Game):
        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            return returned(losses_of(self.params, *batch)), self

    return Wrong


WRONG = {
    "unknown": (lambda found: {**found, "critic": 0.0}, "the loss 'critic' has no parameters"),
    "missing": (lambda found: {"judge": found["judge"]}, "no loss has the parameters 'maker/w'"),
    "twice": (lambda found: {**found, "maker/w": 0.0}, "the losses 'maker' and 'maker/w' have 'maker/w' in common"),
    "empty": (lambda found: {}, r"must have the names of parts of the parameters as its keys.*not \[\]"),
    "number": (lambda found: {0: found["judge"]}, r"such as 'generator', not \[0\]"),
    "vector": (lambda found: {**found, "judge": jnp.zeros(2)}, "is not a scalar"),
}


@pytest.mark.parametrize(("returned", "message"), WRONG.values(), ids=WRONG)
def test_losses_that_do_not_fit_the_parameters_are_named(returned, message):
    trainer = eg.Trainer(step_of(returned)(), optimizer=optax.sgd(0.1))
    with pytest.raises(StepError, match=message):
        trainer.fit(X, Y, verbose=0)
    assert "not initialised" in repr(trainer)


def test_a_term_of_no_loss_and_an_optimizer_of_one_loss_are_refused():
    class Added(Game):
        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            return losses_of(self.params, *batch), self.add_loss("penalty", 1.0)

    with pytest.raises(StepError, match=r"added the term 'penalty' with `add_loss`, which belongs to none of them"):
        train(cls=Added)
    with pytest.raises(TypeError, match="value"):
        train(optimizer=optax.polyak_sgd(0.1))


def test_the_forward_pass_is_computed_once():
    """Each loss has a backward pass of its own, but the two share their forward pass."""
    calls = []

    class Counted(Game):
        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            calls.append(1)
            return super().managed_train_step(key, batch, batch_idx, epoch_idx)

    state = Counted(optimizer=eg.Optimizer(optax.sgd(0.1))).init_step(jax.random.key(0), (X, Y))
    state.train_step((X, Y), 0, 0)
    assert calls == [1]


def test_a_parameter_without_a_gradient_is_named():
    class Whole(Game):
        def managed_init_step(self, key, batch):
            return self.replace(params={**make_params(), "count": jnp.zeros((), jnp.int32)})

    with pytest.raises(TypeError, match=r"the parameter count is int32\[\], and only floating and complex arrays"):
        train(cls=Whole, optimizer=optax.sgd(0.1))
