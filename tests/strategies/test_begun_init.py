"""The first state is compiled in a thread while the step is traced, once, and as without the thread."""

import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from boring_modules import regression

import elegy as eg
from elegy.strategies import init, resolve_strategy

STRATEGIES = ["jit", "data_parallel", "sharded", "fsdp"]


def first_state(key, scale):
    return {"w": jax.random.normal(key, (8, 4)) * scale, "b": jnp.zeros(4), "given": scale}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_begun_kernel_makes_the_same_state_from_the_arguments_of_the_call(name):
    strategy = resolve_strategy(name)
    plain, begun = strategy.compile_init(first_state), strategy.compile_init(first_state)
    begun.begin(jax.random.key(0), jnp.float32(3))
    for seed, scale in ((1, 2.0), (2, 0.5)):  # the second call has no thread
        args = jax.random.key(seed), jnp.float32(scale)
        expected, found = plain(*args), begun(*args)
        for leaf, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(leaf, other)
            assert leaf.sharding == other.sharding


def test_the_first_state_is_compiled_in_a_thread_and_once(monkeypatch):
    threads = []
    compiling = init.InitKernel._compiling

    def watched(self, *args):
        compile_it = compiling(self, *args)
        return lambda: threads.append(threading.current_thread()) or compile_it()

    monkeypatch.setattr(init.InitKernel, "_compiling", watched)
    x, y = regression(16)
    trainer = eg.Trainer(nn.Dense(y.shape[1]), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    trainer.fit(x, y, batch_size=4, epochs=1, validation_data=(x, y), verbose=0)
    trainer.fit(x, y, batch_size=4, epochs=1, verbose=0)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_nothing_is_compiled_for_wrong_labels(monkeypatch):
    monkeypatch.setattr(init.InitKernel, "_compiling", lambda *args: pytest.fail("compiled"))
    x = np.zeros((16, 3), np.float32)
    trainer = eg.Trainer(nn.Dense(4), eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"classes|range"):
        trainer.fit(x, np.full(16, 9), batch_size=4, epochs=1, verbose=0)


def test_an_error_of_the_compiler_is_raised_where_the_state_is_needed(monkeypatch):
    def broken(self, *args):
        def fail():
            raise RuntimeError("no memory for the compiler")

        return fail

    x, y = regression(16)
    trainer = eg.Trainer(nn.Dense(y.shape[1]), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
    with monkeypatch.context() as patch:
        patch.setattr(init.InitKernel, "_compiling", broken)
        with pytest.raises(RuntimeError, match="no memory for the compiler"):
            trainer.fit(x, y, batch_size=4, epochs=1, verbose=0)
    trainer.fit(x, y, batch_size=4, epochs=1, verbose=0)
    assert trainer.step == 4
