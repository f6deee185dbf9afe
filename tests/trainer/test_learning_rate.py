"""`trainer.find_learning_rate`: the curve of a bare loop, a rate that trains, and a trainer that stays as it was."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import Core, High, Managed, assert_same_bits, regression, squares, trainer_of

import elegy as eg
from elegy.data import epoch_permutation
from elegy.trainer.diagnosis.learning_rate import LearningRateTest

X, Y = regression(64)


def bare_test(params, tx_of, rates, size=32, seed=42):
    """The losses of a loop that makes its optimizer anew for each rate, and keeps its state."""
    state, losses = tx_of(1.0).init(params), []
    orders = [epoch_permutation(seed, epoch, len(X)) for epoch in range(len(rates))]
    batches = [order[i : i + size] for order in orders for i in range(0, len(X), size)]
    for rate, rows in zip(rates, batches, strict=False):
        loss, grads = jax.value_and_grad(lambda p, rows=rows: jnp.mean(squares(p, X[rows], Y[rows])))(params)
        updates, state = tx_of(rate).update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


OPTIMIZERS = {
    "injected": (optax.inject_hyperparams(optax.sgd)(learning_rate=0.3, momentum=0.9), momentum, None),
    "scaled": (momentum(0.3), momentum, None),
    "adamw in a chain": (
        optax.chain(optax.clip(1.0), optax.adamw(1e-3)),
        lambda r: optax.chain(optax.clip(1.0), optax.adamw(r)),
        None,
    ),
    "a schedule": (optax.sgd(optax.constant_schedule(0.3), momentum=0.9), momentum, 0.3),
    "several": (
        optax.partition(
            {n: optax.inject_hyperparams(optax.sgd)(learning_rate=r) for n, r in (("w", 0.2), ("b", 0.1))},
            {"w": "w", "b": "b"},
        ),
        lambda r: optax.partition({"w": optax.sgd(r), "b": optax.sgd(r / 2)}, {"w": "w", "b": "b"}),
        None,
    ),
}


@pytest.mark.parametrize("level", [High, Managed])
@pytest.mark.parametrize("case", OPTIMIZERS)
@pytest.mark.some(5)
def test_the_curve_is_that_of_a_bare_loop(case, level):
    tx, tx_of, given = OPTIMIZERS[case]
    one = trainer_of(level, optimizer=tx)
    test = one.find_learning_rate(X, Y, lowest=1e-3, highest=0.3, steps=12, learning_rate=given)
    np.testing.assert_allclose(test.rates, np.geomspace(1e-3, 0.3, 12), rtol=1e-6)
    one.init_on_batch(X, Y)
    np.testing.assert_allclose(test.losses, bare_test(one.state.params, tx_of, test.rates), rtol=1e-4)


def test_the_suggestion_trains_faster_than_its_tenth_and_does_not_diverge():
    losses = []
    suggestion = trainer_of(High, optimizer=optax.sgd(0.1)).find_learning_rate(X, Y).suggestion
    for rate in (suggestion / 10, suggestion):
        one = trainer_of(High, optimizer=optax.sgd(rate))
        losses.append(one.fit(X, Y, epochs=4, verbose=0).history["loss"])
    assert losses[1][-1] < losses[0][-1] < losses[0][0]


def test_a_loss_that_diverges_ends_the_test():
    """Gradient descent on w^2 diverges for rates above 1."""

    class Square(eg.ElegyModule):
        def managed_init_step(self, key, batch):
            return self.replace(params=jnp.ones(()))

        def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            return self.params**2 + 1, self

    test = eg.Trainer(Square(), optimizer=optax.sgd(0.1)).find_learning_rate(X, lowest=1e-3, highest=1e6, steps=200)
    assert 1 < test.rates[-1] < 1e3
    assert np.isfinite(test.losses).all()
    assert test.suggestion < 1


@pytest.mark.parametrize("name", ["injected", "scaled"])
@pytest.mark.parametrize("used", [False, True])
def test_the_trainer_stays_as_it_was(used, name):
    states, histories = [], []
    for tested in (False, True):
        one = trainer_of(High, optimizer=OPTIMIZERS[name][0])
        if used:
            one.fit(X, Y, batch_size=16, verbose=0)
        before = one.state, one.step, one.epoch, one.history
        if tested:
            one.find_learning_rate(X, Y, steps=5)
            assert (one.state, one.step, one.epoch, one.history) == before
        histories.append(one.fit(X, Y, batch_size=16, epochs=2, verbose=0).history)
        states.append(jax.tree.leaves(one.state))
    assert histories[0] == histories[1]
    assert_same_bits(*states)


@pytest.mark.parametrize("strategy", ["eager", "data_parallel", "fsdp"])
def test_strategies_give_the_same_curve(strategy):
    curves = [trainer_of(High, strategy=s).find_learning_rate(X, Y, steps=6).losses for s in ("jit", strategy)]
    np.testing.assert_allclose(*curves, rtol=1e-4)


def test_a_loss_that_does_not_fall_has_no_suggestion():
    assert LearningRateTest.of(np.geomspace(0.1, 1, 5), [1.0, 2, 3, 4, 5]).suggestion is None
    assert LearningRateTest.of(np.geomspace(0.1, 1, 5), [1.0]).suggestion is None


def test_the_suggestion_does_not_depend_on_the_noise_of_single_batches():
    """The fall of a logistic curve is fastest at its middle, whatever the first and the last batch are."""
    rates, steps = np.geomspace(1e-7, 10, 100), np.arange(100)
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(scale=0.15, size=100)
        losses = 1 / (1 + np.exp((steps - 60) / 4)) + noise
        losses[[0, -1]] += [0.5, -0.5]
        assert abs(np.log10(LearningRateTest.of(rates, losses).suggestion / rates[60])) < 0.7  # of eight decades


def test_the_plot_shows_the_suggestion(monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    test = LearningRateTest.of(np.geomspace(0.1, 1, 5), [5.0, 4, 3, 1, 1])
    axes = test.plot()
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), test.losses)
    assert axes.lines[2].get_xdata() == [test.suggestion] * 2
    matplotlib.pyplot.close(axes.figure)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="the plot of a learning-rate test needs the library 'matplotlib'"):
        test.plot()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lowest": 0.0}, ValueError, "lowest=0.0.*positive number"),
        ({"highest": 1e-9}, ValueError, "grows from the lowest"),
        ({"steps": 1}, ValueError, "at least 2 steps"),
        ({"steps": 2.5}, TypeError, "steps must be a positive integer"),
        ({"learning_rate": -1}, ValueError, "learning_rate=-1.*positive number"),
    ],
)
def test_numbers_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        trainer_of(High).find_learning_rate(X, Y, **options)


def test_what_cannot_be_tested_is_refused():
    schedule = optax.adam(optax.cosine_decay_schedule(0.1, 10))
    with pytest.raises(ValueError, match=r"inject_hyperparams\(optax\.adam\).*learning_rate=1e-3"):
        trainer_of(High, optimizer=schedule).find_learning_rate(X, Y)
    pairs = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    with pytest.raises(ValueError, match=r"cannot scale the updates of optax\.lookahead"):
        trainer_of(High, optimizer=pairs).find_learning_rate(X, Y, learning_rate=0.1)
    with pytest.raises(ValueError, match="leave the argument out"):
        trainer_of(High, optimizer=OPTIMIZERS["injected"][0]).find_learning_rate(X, Y, learning_rate=0.1)
    with pytest.raises(TypeError, match="find_learning_rate takes arrays"):
        trainer_of(High).find_learning_rate([(X, Y)])
    with pytest.raises(ValueError, match="the loss of the first batch is not finite"):
        trainer_of(High).find_learning_rate(X * np.inf, Y)
    with pytest.raises(ValueError, match=r"Core\.train_step is of the core level"):
        trainer_of(Core).find_learning_rate(X, Y)


class Dropout(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(2)(nn.BatchNorm(not train)(nn.Dropout(0.5)(nn.Dense(16)(x), deterministic=not train)))


def test_batch_statistics_and_random_keys_stay_too():
    one = eg.Trainer(Dropout(), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.01))
    one.train_on_batch(X, Y)
    before = one.state
    copies = [np.array(leaf) for leaf in jax.tree.leaves((before.params, before.batch_stats))]
    assert one.find_learning_rate(X, Y, steps=30).suggestion is not None
    assert one.state is before
    assert_same_bits(copies, jax.tree.leaves((before.params, before.batch_stats)))


def test_the_repr_names_the_suggestion_the_lowest_loss_and_both_ends_of_the_curve():
    rates = np.geomspace(1e-3, 1, 31)
    losses = np.r_[np.linspace(3, 1, 20), np.linspace(1, 2, 11)]
    test = LearningRateTest.of(rates, losses)
    lowest = test.rates[int(np.argmin(test.smoothed))]
    first, second, _, *rows = repr(test).splitlines()
    assert f"{test.suggestion:.3g}" in first
    assert f"at {lowest:.3g}." in second
    assert [rows[k].split() for k in (0, -1)] == [["0.001", "3"], ["1", "2"]]
    assert "does not fall" in repr(LearningRateTest.of(rates, np.linspace(1, 2, 31)))
