"""Data that is filled into the same NumPy arrays, batch after batch, while earlier batches wait for the device."""

import jax
import numpy as np
import optax
import pytest
from boring_modules import assert_same_bits, host

import elegy as eg
from elegy.data import IterableSource

ROWS, SIZE = 8, 256
RNG = np.random.default_rng(0)
X = RNG.normal(size=(10 * ROWS, SIZE)).astype(np.float32)
Y = X[:, :1].copy()


class Slow(eg.ElegyModule):
    """Takes longer than a batch takes to be read, so that steps run behind the loop."""

    def init(self, key, inputs):
        return self.replace(params={"w": jax.random.normal(key, (SIZE, SIZE)) / SIZE**0.5})

    def apply(self, key, inputs, training):
        for _ in range(20):
            inputs = jax.numpy.tanh(inputs @ self.params["w"])
        return inputs[:, :1], self


def aligned(shape):
    """An array that JAX shares with the CPU backend as it is; others it copies, some of the time too early to see."""
    buffer = np.empty(4 * int(np.prod(shape)) + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start:][: 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


def fresh():
    for i in range(0, len(X), ROWS):
        yield X[i : i + ROWS].copy(), Y[i : i + ROWS].copy()


def refilled():
    inputs, labels = aligned((ROWS, SIZE)), aligned((ROWS, 1))
    for x, y in fresh():
        inputs[:], labels[:] = x, y
        yield inputs, labels


def trainer():
    return eg.Trainer(Slow(), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(1e-3))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_buffer_that_is_refilled_gives_what_fresh_arrays_give(steps):
    trainers, histories = (trainer(), trainer()), []
    for one, data in zip(trainers, (fresh, refilled), strict=True):
        history = one.fit(data, validation_data=data, epochs=2, steps_per_execution=steps, verbose=0)
        histories.append({name: values for name, values in history.history.items() if "loss" in name})
    assert histories[0] == histories[1]
    assert_same_bits(host(trainers[0].state), host(trainers[1].state))
    np.testing.assert_array_equal(trainers[0].predict(fresh), trainers[1].predict(refilled))


def test_a_loop_of_ones_own_may_refill_its_buffer():
    trainers, logs = (trainer(), trainer()), []
    for one, data in zip(trainers, (fresh, refilled), strict=True):
        logs.append([(one.train_on_batch(x, y), one.test_on_batch(x, y)) for x, y in data()])
    assert [[a["loss"], b["loss"]] for a, b in logs[0]] == [[a["loss"], b["loss"]] for a, b in logs[1]]
    assert_same_bits(host(trainers[0].state), host(trainers[1].state))


@pytest.mark.parametrize("kind", [list, iter])
def test_batches_share_no_memory_with_what_gave_them(kind):
    given = list(fresh())
    for ours, theirs in zip(IterableSource(kind(given)).batches(), given, strict=True):
        assert not np.shares_memory(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[0], theirs[0])
