"""The collector of cyclic garbage is off while functions are traced, and as before afterwards."""

from __future__ import annotations

import gc
import threading

import jax.numpy as jnp
import optax
import pytest
from boring_modules import High, regression

import elegy as eg
from elegy.flat import eval_shape, make_jaxpr
from elegy.garbage import collection_paused


@pytest.mark.parametrize("trace", [eval_shape, make_jaxpr])
def test_tracing_runs_without_collections(trace):
    seen = []
    trace(lambda x: (seen.append(gc.isenabled()), x * 2)[1], jnp.zeros(2))
    assert (seen, gc.isenabled()) == ([False], True)


def test_the_users_step_is_traced_without_collections_and_runs_with_them():
    seen = {"traced": [], "between": []}

    class Noting(High):
        def apply(self, key, inputs, training):
            seen["traced"].append(gc.isenabled())
            return super().apply(key, inputs, training)

    between = eg.callbacks.LambdaCallback(on_train_batch_end=lambda event: seen["between"].append(gc.isenabled()))
    trainer = eg.Trainer(Noting(), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.fit(*regression(), batch_size=8, verbose=0, callbacks=[between])
    assert set(seen["traced"]) == {False}
    assert set(seen["between"]) == {True}


def test_an_error_turns_it_on_again_and_nested_blocks_do_not():
    def fails(x):
        raise ZeroDivisionError

    with collection_paused():
        with pytest.raises(ZeroDivisionError):
            make_jaxpr(fails, jnp.zeros(2))
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        make_jaxpr(fails, jnp.zeros(2))
    assert gc.isenabled()


def test_a_collector_that_the_user_turned_off_stays_off():
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_last_of_overlapping_blocks_of_two_threads_turns_it_on():
    inside, leave = threading.Event(), threading.Event()

    def block():
        with collection_paused():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=block)
    with collection_paused():
        thread.start()
        inside.wait()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
