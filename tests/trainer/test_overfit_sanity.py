"""`fit(overfit_batches=n)` and `fit(sanity_check=n)`."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from boring_modules import High, assert_same_bits, regression, trainer_of, weights

import elegy as eg

X, Y = regression(50)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]


@pytest.mark.parametrize("kind", ["arrays", "list", "generator"])
def test_each_epoch_trains_on_the_first_batches_in_their_order(kind):
    """As training on the first rows alone, unshuffled; the validation sees the same rows, not its own."""
    options = {"epochs": 3, "verbose": 0}
    sets = {"near": eg.Evaluation((X + 9, Y), batch_size=4, steps=1), "far": [(X * 9, Y)]}
    data = {"arrays": (X, Y), "list": (BATCHES,), "generator": (iter(BATCHES),)}[kind]
    first, size = ((X[:16], Y[:16]), {"batch_size": 8}) if kind == "arrays" else ((BATCHES[:2],), {})
    short, one = trainer_of(High), trainer_of(High)
    expected = short.fit(*first, shuffle=False, validation_data=(X[:16], Y[:16]), **size, **options)
    history = one.fit(*data, overfit_batches=2, validation_data=sets, **size, **options).history
    assert_same_bits(short.state.params, one.state.params)
    assert history["loss"] == expected.history["loss"]
    np.testing.assert_allclose(history["val_near_loss"], expected.history["val_loss"], rtol=1e-6)
    assert history["val_far_loss"] == history["val_near_loss"]
    assert one.step == 6


def test_class_weights_count_in_training_only():
    labels = (Y[:, 0] > 0).astype(int)
    one, other = (eg.Trainer(nn.Dense(2), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1), seed=1) for _ in range(2))
    weight = {0: 1.0, 1: 5.0}
    options = {"class_weight": weight, "validation_data": (X, labels), "verbose": 0}
    a = one.fit(X, labels, batch_size=8, overfit_batches=2, **options).history
    batches = [(X[i : i + 8], labels[i : i + 8]) for i in range(0, 48, 8)]
    b = other.fit(batches, overfit_batches=2, **options).history
    assert a == b
    assert a["val_loss"][0] == pytest.approx(one.evaluate(X[:16], labels[:16], verbose=0)["loss"], rel=1e-6)


def test_more_batches_than_there_are_is_all_of_them():
    history = trainer_of(High).fit(X, Y, batch_size=8, overfit_batches=99, epochs=2, verbose=0, validation_split=0.2)
    assert len(history.history["val_loss"]) == 2
    with pytest.raises(ValueError, match="overfit_batches=2 and steps_per_epoch=3"):
        trainer_of(High).fit(X, Y, overfit_batches=2, steps_per_epoch=3)
    with pytest.raises(ValueError, match="overfit_batches must be a positive integer"):
        trainer_of(High).fit(X, Y, overfit_batches=0)


class Hears(eg.Callback):
    def __init__(self):
        self.tests = []

    def on_test_begin(self, event):
        self.tests.append(event.step)


@pytest.mark.parametrize("strategy", ["jit", "eager", "data_parallel"])
def test_a_sanity_check_changes_nothing(strategy):
    """Runs with and without it have the same bits; its steps are heard by nobody and recorded nowhere."""
    options = {"batch_size": 8, "epochs": 2, "sample_weight": weights(50), "verbose": 0}
    states, histories = [], []
    for steps in (0, 2):
        one, hears = trainer_of(High, strategy=strategy, loss=eg.losses.MeanSquaredError()), Hears()
        validation = {"a": (X, Y), "b": BATCHES, "c": lambda: iter(BATCHES[:1])}
        run = one.fit(X, Y, validation_data=validation, callbacks=[hears], sanity_check=steps, **options)
        assert hears.tests == [7] * 3 + [14] * 3
        states.append(jax.tree.leaves(one.state))
        histories.append(run.history)
    assert_same_bits(*states)
    assert histories[0] == histories[1]


def test_a_broken_validation_is_found_before_the_first_step():
    """The second batch is wrong, which no check of the first one finds."""
    reads = []

    def broken():
        reads.append("begun")
        yield X[:8], Y[:8]
        raise OSError("the file of the second batch is missing")

    for steps, trained in ((0, 7), (2, 0)):
        one = trainer_of(High)
        with pytest.raises(OSError, match="second batch is missing") as caught:
            one.fit(X, Y, batch_size=8, validation_data=broken, sanity_check=steps, verbose=0)
        assert one.step == trained
        assert any("sanity check" in note for note in getattr(caught.value, "__notes__", ())) == (steps == 2)
    assert one.state.params is None


def test_an_iterator_is_not_read_twice():
    one = trainer_of(High)
    history = one.fit(X, Y, validation_data=iter(BATCHES), validation_steps=6, sanity_check=2, verbose=0).history
    assert history["val_loss"][0] == pytest.approx(one.evaluate(X[:48], Y[:48], verbose=0)["loss"], rel=1e-5)


@pytest.mark.parametrize("steps", [-1, 1.5, "2", True])
def test_a_sanity_check_is_a_number_of_steps(steps):
    with pytest.raises(ValueError, match="sanity_check must be a number of validation steps"):
        trainer_of(High).fit(X, Y, validation_data=(X, Y), sanity_check=steps)


def test_a_sanity_check_needs_validation_data():
    with pytest.raises(ValueError, match="sanity_check=2, but there is no validation data"):
        trainer_of(High).fit(X, Y, sanity_check=2)
