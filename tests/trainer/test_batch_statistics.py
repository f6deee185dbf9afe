"""Batch statistics computed anew, against the means of batches in NumPy, for every library and strategy."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import High, Managed, assert_same_bits, regression
from flax import nnx

import elegy as eg
from elegy.errors import StepError

X, Y = regression(20)  # batches of 8, 8 and 4


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.Dense(4, name="a")(x)
        x = nn.BatchNorm(not training, momentum=0.99, name="na")(x)
        x = nn.Dense(4, name="b")(jnp.tanh(x))
        x = nn.BatchNorm(not training, momentum=0.9, name="nb")(x)
        return nn.Dense(2, name="c")(x)


class NNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.b, self.c = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.na, self.nb = nnx.BatchNorm(4, rngs=rngs), nnx.BatchNorm(4, momentum=0.5, rngs=rngs)

    def __call__(self, x):
        return self.c(self.nb(self.b(jnp.tanh(self.na(self.a(x))))))


def haiku(x, is_training):
    x = hk.BatchNorm(True, True, 0.99, name="na")(hk.Linear(4, name="a")(x), is_training)
    x = hk.BatchNorm(True, True, 0.9, name="nb")(hk.Linear(4, name="b")(jnp.tanh(x)), is_training)
    return hk.Linear(2, name="c")(x)


MODULES = {"linen": Linen, "nnx": NNX, "haiku": lambda: hk.transform_with_state(haiku)}


def trained(module, averaging=eg.SWA(), **kwargs):  # noqa: B008  # a frozen value
    trainer = eg.Trainer(module, eg.losses.MeanSquaredError(), None, optax.adam(0.1), averaging=averaging, **kwargs)
    trainer.fit(X, Y, batch_size=8, epochs=3, verbose=0)
    return trainer


def averaged(trainer):
    return jax.tree.map(np.asarray, trainer.state.averaged_params.params(trainer.state.params))


def by_hand(params, batches):
    """The mean over batches of each layer's mean and biased variance, in NumPy."""
    kernel, bias, scale = ("w", "b", "scale") if "w" in params["a"] else ("kernel", "bias", "scale")
    offset = "offset" if "offset" in params["na"] else "bias"
    found = []
    for x in batches:
        values = []
        for dense, norm in (("a", "na"), ("b", "nb")):
            h = (x if dense == "a" else np.tanh(x)) @ params[dense][kernel] + params[dense][bias]
            values += [h.mean(0), h.var(0)]
            scaled = params[norm][scale].reshape(-1), params[norm][offset].reshape(-1)
            x = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * scaled[0] + scaled[1]
        found.append(values)
    return [np.mean(values, axis=0) for values in zip(*found, strict=True)]


def statistics(trainer):
    """The running mean and variance of both layers."""
    stats = trainer.state.batch_stats
    if "na" in stats:
        return [np.asarray(stats[norm][kind]) for norm in ("na", "nb") for kind in ("mean", "var")]
    return [
        np.asarray(stats[f"{n}/~/{kind}_ema"]["average"]).reshape(-1) for n in ("na", "nb") for kind in ("mean", "var")
    ]


CLOSE = {"rtol": 2e-5, "atol": 1e-5}  # float32 sums, and a momentum of 0.99 that a difference of two of them gave


@pytest.mark.parametrize(
    "library", ["haiku", *(pytest.param(name, marks=pytest.mark.slow) for name in ("linen", "nnx"))]
)
def test_they_are_the_means_over_the_batches_with_the_averaged_weights(library):
    trainer = trained(MODULES[library]())
    before = trainer.state
    trainer.update_batch_stats(X, batch_size=8)
    batches = [X[:8], X[8:16], X[16:]]
    for got, wanted in zip(statistics(trainer), by_hand(averaged(trainer), batches), strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE)
    assert_same_bits(trainer.state.replace(batch_stats=None), before.replace(batch_stats=None))
    trainer.update_batch_stats(iter([(X[:8], Y[:8]), (X[8:16], Y[8:16])]), weights="trained", steps=1)
    for got, wanted in zip(
        statistics(trainer), by_hand(jax.tree.map(np.asarray, before.params), batches[:1]), strict=True
    ):
        np.testing.assert_allclose(got, wanted, **CLOSE)


@pytest.mark.slow
def test_training_goes_on_from_them_as_from_a_running_mean_of_haiku():
    """`hidden / (1 - decay ** count)` is the average: the next step's average is that of the formula."""
    trainer = trained(MODULES["haiku"]())
    trainer.update_batch_stats(X, batch_size=8)
    state = trainer.state.haiku_state["na/~/mean_ema"]
    count = int(state["counter"])
    debias = 1 - 0.99**count
    np.testing.assert_allclose(np.asarray(state["hidden"]) / debias, state["average"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["eager", "data_parallel", eg.strategies.FSDP({"data": 2}, min_size=1)], ids=str)
def test_under_every_strategy_the_batch_is_whole(strategy):
    trainer = trained(Linen(), strategy=strategy)
    trainer.update_batch_stats(X, batch_size=8)
    wanted = by_hand(averaged(trainer), [X[:8], X[8:16], X[16:]])
    for got, value in zip(statistics(trainer), wanted, strict=True):
        np.testing.assert_allclose(got, value, **CLOSE)
    trainer.fit(X, Y, batch_size=8, verbose=0)
    assert np.isfinite(trainer.evaluate(X, Y, weights="averaged", verbose=0)["loss"])


class PartlyFrozen(nn.Module):
    """Its first layer uses its running statistics in training, too."""

    @nn.compact
    def __call__(self, x, training):
        x = nn.BatchNorm(use_running_average=True, name="na")(x)
        return nn.BatchNorm(not training, name="nb")(nn.Dense(2, name="c")(x))


def test_statistics_that_training_does_not_change_stay():
    trainer = trained(PartlyFrozen(), averaging=None)
    before = trainer.state
    trainer.update_batch_stats(X, batch_size=20)
    assert_same_bits(trainer.state.batch_stats["na"], before.batch_stats["na"])
    norm, dense = before.params["na"], before.params["c"]
    x = X / np.sqrt(1 + 1e-5) * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    wanted = (x @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])).mean(0)
    np.testing.assert_allclose(trainer.state.batch_stats["nb"]["mean"], wanted, **CLOSE)


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return nn.SpectralNorm(nn.Dense(2))(x, update_stats=training)


class EquinoxNorm(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return x[:2], state


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: trained(Spectral(), averaging=None),
            ValueError,
            r"updates these in another way: SpectralNorm_0/Dense_0/kernel/sigma",
        ),
        (lambda: trained(eqx.nn.make_with_state(EquinoxNorm)(), averaging=None), ValueError, "Equinox modules"),
        (lambda: trained(High()), ValueError, "High has no batch statistics"),
        (lambda: eg.Trainer(Linen()), StepError, "there is no state yet"),
        (lambda: trained_managed(), StepError, "which Managed does not implement"),
    ],
)
def test_what_has_no_running_means_is_told_and_unchanged(make, error, message):
    trainer = make()
    before = trainer.state
    with pytest.raises(error, match=message):
        trainer.update_batch_stats(X, batch_size=8)
    assert_same_bits(trainer.state, before)


def trained_managed():
    trainer = eg.Trainer(Managed(), optimizer=optax.sgd(0.1))
    trainer.fit(X, Y, verbose=0)
    return trainer


def test_while_fit_runs_it_is_refused():
    def update(event):
        event.trainer.update_batch_stats(X)

    trainer = eg.Trainer(Linen(), eg.losses.MeanSquaredError(), None, optax.adam(0.1))
    callback = eg.callbacks.LambdaCallback(on_epoch_end=update)
    with pytest.raises(RuntimeError, match="update_batch_stats"):
        trainer.fit(X, Y, batch_size=20, verbose=0, callbacks=[callback])
