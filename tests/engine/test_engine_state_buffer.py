"""Who owns the leaves of the state, and what a compiled step may consume."""

from __future__ import annotations

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elegy as eg
from elegy.engine.measures import with_measures
from elegy.engine.state_buffer import StateBuffer
from elegy.strategies import Jit


class Pair(eg.Pytree):
    a: jax.Array
    b: jax.Array


def buffer_of() -> StateBuffer:
    strategy = Jit()
    buffer = StateBuffer(strategy, None)
    buffer.put_state(strategy.place_state(Pair(jnp.arange(3.0), jnp.ones(2))))
    return buffer


def consume(leaves):
    return jax.jit(lambda leaves: [leaf + 1 for leaf in leaves], donate_argnums=0)(leaves)


def test_a_loop_that_hands_out_nothing_copies_nothing():
    buffer = buffer_of()
    (leaf,) = buffer.pick([0])
    assert buffer.take([0], 1)[0] is leaf


def test_a_state_that_was_handed_out_stays_valid():
    buffer, positions = buffer_of(), [0, 1]
    handed_out = buffer.get()
    buffer.put(positions, consume(buffer.take(positions, len(positions))))
    assert handed_out.a.tolist() == [0, 1, 2]
    assert buffer.get().a.tolist() == [1, 2, 3]


def test_a_fork_moves_and_leaves_its_origin():
    buffer, positions = buffer_of(), [0, 1]
    other = buffer.fork()
    other.put(positions, consume(other.take(positions, len(positions))))
    assert buffer.get().b.tolist() == [1, 1]
    assert other.get().b.tolist() == [2, 2]


def test_a_shared_fork_costs_no_copy_after_its_block():
    buffer = buffer_of()
    (leaf,) = buffer.pick([0])
    with buffer.shared():
        assert buffer.take([0], 1)[0] is not leaf  # the fork may still read it
    assert buffer.take([0], 1)[0] is leaf


@pytest.mark.parametrize("measures", [None, eg.metrics.LossesAndMetrics(metrics=eg.metrics.Accuracy())])
def test_steps_on_forks_are_sent_to_the_devices_one_after_another(measures):
    state = eg.ElegyModule()
    buffer = StateBuffer(Jit(), state)
    fork, entered = with_measures(buffer.fork(), measures), threading.Event()

    def step():
        with fork.lock:
            entered.set()

    thread = threading.Thread(target=step)
    with buffer.lock:
        thread.start()
        assert not entered.wait(0.05)
    thread.join()
    assert entered.is_set()


def test_consumed_leaves_are_named_as_lost():
    buffer, positions = buffer_of(), [0, 1]
    consume(buffer.take(positions, len(positions)))  # and nothing is put back, as after a step that failed
    with pytest.raises(RuntimeError, match="the state is lost"):
        buffer.get()


def test_leaves_whose_computation_failed_later_count_as_lost():
    def fails(x):
        raise ValueError("no value")

    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: 1e-3 * y @ y, x))
    last = jax.jit(lambda x: jax.pure_callback(fails, jax.ShapeDtypeStruct((), jnp.float32), x[0, 0]))
    ones = jnp.ones((1000, 1000))
    compiled = last.lower(ones).compile()
    jax.block_until_ready(slow(ones))
    buffer, positions = buffer_of(), [0]
    buffer.take(positions, 1)
    buffer.put(positions, [compiled(slow(ones))])  # queued: it fails after `slow` has ended
    buffer.discard_failed()
    with pytest.raises(RuntimeError, match="the state is lost"):
        buffer.get()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # otherwise JAX reports the callback at exit
        jax.effects_barrier()


def test_leaves_that_are_computed_are_kept_when_others_failed():
    buffer = buffer_of()
    before = jax.tree.map(np.asarray, buffer.get())
    buffer.discard_failed()
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, buffer.get()))
