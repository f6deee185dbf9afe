"""Who owns the leaves of the state, and what a compiled step may consume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import elegy as eg
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


def test_a_shared_fork_that_was_released_costs_no_copy():
    buffer = buffer_of()
    (leaf,) = buffer.pick([0])
    fork = buffer.shared_fork()
    assert buffer.take([0], 1)[0] is not leaf  # the fork may still read it
    fork.release()
    assert buffer.take([0], 1)[0] is leaf


def test_consumed_leaves_are_named_as_lost():
    buffer, positions = buffer_of(), [0, 1]
    consume(buffer.take(positions, len(positions)))  # and nothing is put back, as after a step that failed
    with pytest.raises(RuntimeError, match="the state is lost"):
        buffer.get()
