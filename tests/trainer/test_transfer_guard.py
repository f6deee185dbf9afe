"""Transfers of Elegy to the devices are explicit: `jax.transfer_guard("disallow")` finds those of a user."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import elegy as eg

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype(np.float32)
Y = X.argmax(1).astype(np.int32)
NETWORK = (lambda key, x: jnp.eye(3), lambda params, x: x @ params)


def trainer(**options):
    return eg.Trainer(NETWORK, eg.losses.CrossEntropy(), eg.metrics.Accuracy(), optax.sgd(0.1), **options)


@pytest.mark.parametrize("strategy", ["jit", "data_parallel", "sharded", "fsdp"])
def test_calls_on_arrays(strategy):
    one = trainer(strategy=strategy)

    def calls():
        one.fit(X, Y, batch_size=8, validation_split=0.2, verbose=0)
        one.evaluate(X, Y, batch_size=8, verbose=0)
        one.predict(X, batch_size=8)
        one.train_on_batch(X, Y), one.test_on_batch(X, Y), one.predict_on_batch(X)

    calls()
    before = one.step
    with jax.transfer_guard("disallow"):
        calls()
    assert one.step == 2 * before


@pytest.mark.parametrize("shuffle", [True, False])
def test_numpy_arrays_beside_jax_arrays(shuffle):
    one = trainer()

    def calls(x, y):
        one.fit(x, y, batch_size=8, validation_split=0.2, shuffle=shuffle, verbose=0)
        one.evaluate(x, y, batch_size=8, verbose=0)
        one.predict(x, batch_size=8)

    for x, y in ((X, jnp.asarray(Y)), (jnp.asarray(X), Y)):
        with jax.transfer_guard("disallow"):
            calls(x, y)
    assert one.step == 4


def test_single_steps_of_an_iterable(tmp_path):
    one = trainer(nonfinite="skip", averaging=eg.EMA(0.9), precision="mixed_float16", accumulate=2)
    for guard in (contextlib.nullcontext(), jax.transfer_guard("disallow")):
        name = str(one.step)
        callbacks = [eg.callbacks.ModelCheckpoint(tmp_path / name), eg.loggers.CSV(tmp_path / f"{name}.csv")]
        with guard:
            one.fit([(X[:8], Y[:8]), (X[8:16], Y[8:16])], callbacks=callbacks, verbose=0)
    assert one.step == 4


class Transfers(eg.Callback):
    """Transfers a number at each step."""

    def on_train_batch_end(self, event):
        jnp.sin(0.5)


def test_a_transfer_of_the_user_is_found():
    one = trainer()
    one.fit(X, Y, verbose=0)
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="host-to-device"):
        one.fit(X, Y, verbose=0, callbacks=[Transfers()])


def test_a_guard_of_explicit_transfers_refuses_those_of_steps():
    one = trainer()
    one.fit(X, Y, steps_per_execution=1, verbose=0)
    with jax.transfer_guard("disallow_explicit"), pytest.raises(Exception, match="host-to-device"):
        one.fit(X, Y, steps_per_execution=1, verbose=0)
