"""`super().managed_train_step(...)` of a class with `init` and `apply`, against a bare loop, at every strategy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import STRATEGIES, High, assert_same_bits, regression, squares, weights
from some_cases import some

import elegy as eg
from elegy.strategies import DataParallel

X, Y = regression(22)
W = weights(22)
BATCH, EPOCHS = 8, 2  # the last batch of an epoch has six rows, which four devices cannot share
CLOSE = {"rtol": 2e-5, "atol": 1e-6}  # float32, sums in another order than the reference's


def penalty(params):
    return 0.1 * jnp.sum(params["w"] ** 2)


class Adds(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        return loss + penalty(self.params), module


class AddsLoss(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        return loss, module.add_loss("penalty", penalty(self.params))


class OnlyLogs(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        return loss, module.log("same", loss).log("rows", batch[0].shape[0], reduce="sum")


class Scales(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        return 3 * loss, module


class Nonlinear(High):
    """Needs the loss of the whole batch on every replica: the mean of roots is not the root of the mean."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
        return jnp.sqrt(loss) + loss * self.params["b"][0], module


OBJECTIVES = {
    High: lambda loss, params: loss,
    Adds: lambda loss, params: loss + penalty(params),
    AddsLoss: lambda loss, params: loss + penalty(params),
    OnlyLogs: lambda loss, params: loss,
    Scales: lambda loss, params: 3 * loss,
    Nonlinear: lambda loss, params: jnp.sqrt(loss) + loss * params["b"][0],
}


def bare(cls, params):
    """The parameters, and for each step its loss, the mean squared error, the sum of the weights and the rows."""

    @jax.jit
    def step(params, x, y, w):
        def objective(params):
            loss = jnp.sum(w * squares(params, x, y)) / jnp.sum(w)
            return OBJECTIVES[cls](loss, params), loss

        (value, loss), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value, loss

    steps = []
    for _ in range(EPOCHS):
        for start in range(0, len(X), BATCH):
            x, y, w = (a[start : start + BATCH] for a in (X, Y, W))
            params, value, loss = step(params, x, y, w)
            steps.append((float(value), float(loss), w.sum(), len(x)))
    return params, np.array(steps).reshape(EPOCHS, -1, 4)


def train(cls, strategy="jit", **kwargs):
    trainer = eg.Trainer(
        cls(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), strategy=STRATEGIES[strategy](), **kwargs
    )
    trainer.init_on_batch(X[:BATCH], Y[:BATCH])
    start = jax.tree.map(np.array, trainer.state.params)
    history = trainer.fit(X, Y, sample_weight=W, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    return start, trainer.state, history.history


CASES = [(cls, name) for cls in (Adds, OnlyLogs, Scales) for name in STRATEGIES]
CASES += [(AddsLoss, "data_parallel"), (AddsLoss, "jit"), (Nonlinear, "data_parallel"), (Nonlinear, "fsdp")]


@pytest.mark.parametrize(("cls", "strategy"), some(CASES, 8))
def test_the_loss_of_super_is_the_loss_of_the_whole_batch(cls, strategy):
    start, state, history = train(cls, strategy)
    params, steps = bare(cls, start)
    for name, value in params.items():
        np.testing.assert_allclose(state.params[name], value, **CLOSE)
    value, loss, weight, rows = np.moveaxis(steps, -1, 0)
    mean = (loss * weight).sum(1) / weight.sum(1)
    np.testing.assert_allclose(history["mean_squared_error"], mean, **CLOSE)
    factor = 3 if cls is Scales else 1
    if cls is not Nonlinear:  # what is added is averaged by rows, as a regularizer is
        np.testing.assert_allclose(
            history["loss"], factor * mean + ((value - factor * loss) * rows).sum(1) / rows.sum(1), **CLOSE
        )
    if cls is OnlyLogs:
        np.testing.assert_allclose(history["same"], (loss * rows).sum(1) / rows.sum(1), **CLOSE)
    names = {
        AddsLoss: ["loss", "penalty", "mean_squared_error"],
        OnlyLogs: ["loss", "mean_squared_error", "same", "rows"],
    }
    assert list(history) == names.get(cls, ["loss", "mean_squared_error"])


class Unchanged(High):
    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return super().managed_train_step(key, batch, batch_idx, epoch_idx)

    def managed_test_step(self, key, batch, batch_idx):
        return super().managed_test_step(key, batch, batch_idx)


class Counts(High):
    """Its `apply` moves a field of its own, differently on each replica."""

    mean: jax.Array = eg.field(default_factory=lambda: jnp.zeros(3))

    def apply(self, key, inputs, training):
        outputs, module = super().apply(key, inputs, training)
        return outputs, module.replace(mean=inputs.mean(0)).add_loss("bias", jnp.sum(self.params["b"] ** 2))


class CountsUnchanged(Unchanged, Counts):
    pass


@pytest.mark.parametrize(("plain", "overridden"), [(High, Unchanged), (Counts, CountsUnchanged)])
def test_steps_that_only_call_super_change_nothing(plain, overridden):
    runs = []
    for cls in (plain, overridden):
        trainer = eg.Trainer(cls(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), strategy=DataParallel(2))
        history = trainer.fit(X, Y, sample_weight=W, batch_size=8, epochs=2, verbose=0).history
        logs = trainer.evaluate(X[:16], Y[:16], batch_size=8, verbose=0)
        runs.append((history, logs, jax.tree.map(_data, trainer.state)))
    assert [list(logs) for logs in runs[0][:2]] == [list(logs) for logs in runs[1][:2]]
    for one, other in zip(*map(jax.tree.leaves, runs), strict=True):
        # The default step pads the short batch, which moves a bit: 4e-6 of a sum of 52, also in its compensation.
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)


def _data(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


class Halves(High):
    """The default step, once for each half of the batch."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        half = len(batch[0]) // 2
        one, module = super().managed_train_step(key, jax.tree.map(lambda a: a[:half], batch), batch_idx, epoch_idx)
        other, module = super(Halves, module).managed_train_step(
            key, jax.tree.map(lambda a: a[half:], batch), batch_idx, epoch_idx
        )
        return one + other, module


class Discards(High):
    """Takes the loss of the default step and leaves its logs."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return super().managed_train_step(key, batch, batch_idx, epoch_idx)[0], self


@pytest.mark.parametrize(("cls", "factor"), [(Halves, 2), (Discards, 1)])
@pytest.mark.parametrize("strategy", ["jit", "data_parallel"])
def test_what_is_logged_is_what_the_step_returned(cls, factor, strategy):
    trainer = eg.Trainer(cls(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), strategy=STRATEGIES[strategy]())
    trainer.init_on_batch(X[:8], Y[:8])
    start = jax.tree.map(np.array, trainer.state.params)
    logs = trainer.train_on_batch(X[:8], Y[:8])
    loss, grads = jax.value_and_grad(lambda p: factor * jnp.mean(squares(p, X[:8], Y[:8])))(start)
    np.testing.assert_allclose(logs["loss"], loss, **CLOSE)
    assert list(logs) == (["loss", "mean_squared_error"] if cls is Halves else ["loss"])
    for name, value in trainer.state.params.items():
        np.testing.assert_allclose(value, start[name] - 0.1 * grads[name], **CLOSE)


def test_the_context_of_a_step_ends_with_it():
    state = train(Adds)[1]
    batch = (X[:8], Y[:8])
    alone = jax.jit(lambda state: state.managed_train_step(jax.random.key(0), batch, 0, 0)[0])
    expected = jnp.mean(squares(state.params, *batch)) + penalty(state.params)
    np.testing.assert_allclose(alone(state), expected, **CLOSE)
    for after in (state, state.train_step(batch, 0, 0)[1], state.test_step(batch, 0)[1]):
        assert after._step is None


class Rematerialized(High):
    """Passes its whole module through a transformation of JAX."""

    def managed_train_step(self, key, batch, batch_idx, epoch_idx):
        return jax.checkpoint(lambda module: High.managed_train_step(module, key, batch, batch_idx, epoch_idx))(self)


def test_a_context_passes_through_transformations():
    one, other = (train(cls, "data_parallel") for cls in (High, Rematerialized))
    for name, value in one[1].params.items():
        np.testing.assert_allclose(other[1].params[name], value, **CLOSE)
    np.testing.assert_allclose(one[2]["loss"], other[2]["loss"], **CLOSE)


def test_the_total_of_a_cut_epoch_is_saved(tmp_path):
    def make():
        return eg.Trainer(Scales(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))

    whole, first, second = make(), make(), make()
    options = {"sample_weight": W, "batch_size": 4, "shuffle": False, "verbose": 0, "epochs": 2}
    history = whole.fit(X, Y, **options).history
    first.fit(X, Y, **options, max_steps=3)
    first.save(tmp_path / "run")
    assert second.fit(X, Y, **options, resume=tmp_path / "run").history == history
    assert_same_bits(whole.state.params, second.state.params)


def test_evaluation_by_super_with_a_value_of_its_own():
    class Tested(High):
        def managed_test_step(self, key, batch, batch_idx):
            module = super().managed_test_step(key, batch, batch_idx)
            return module.add_loss("penalty", penalty(self.params)).log("rows", len(batch[0]), reduce="sum")

    trainer = eg.Trainer(Tested(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1), strategy=DataParallel(2))
    trainer.init_on_batch(X, Y)
    params = trainer.state.params
    logs = trainer.evaluate(X, Y, sample_weight=W, batch_size=8, verbose=0)
    mean = float(jnp.sum(W * squares(params, X, Y)) / W.sum())
    expected = {
        "loss": mean + float(penalty(params)),
        "penalty": penalty(params),
        "mean_squared_error": mean,
        "rows": 22,
    }
    assert list(logs) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, **CLOSE)


def test_a_complex_loss_is_named():
    class Complex(High):
        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            loss, module = super().managed_train_step(key, batch, batch_idx, epoch_idx)
            return loss + 0j, module

    with pytest.raises(eg.errors.StepError, match=r"Complex.managed_train_step returned is complex.*jnp\.real"):
        train(Complex)
