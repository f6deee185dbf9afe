"""Wall time by part: each moment belongs to one of them."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
import jax
import pytest
from hypothesis import given

from elegy.walltime import PARTS, WallTimes, current, measured, measured_items, measuring

blocks = st.recursive(
    st.integers(0, 9), lambda inner: st.lists(st.tuples(st.sampled_from(PARTS), inner), max_size=4), max_leaves=12
)


@given(blocks)
def test_the_parts_of_nested_blocks_add_up_to_the_whole(tree):
    now, wanted = [0], dict.fromkeys(PARTS, 0)

    def run(times, node, part):
        if isinstance(node, int):
            now[0] += node
            wanted[part] += node
            return
        for inner, child in node:
            with times.of(inner):
                run(times, child, "evaluation" if part == "evaluation" and inner != "saving" else inner)

    times = WallTimes(lambda: now[0])
    run(times, tree, "other")
    assert times.read() == wanted
    assert sum(times.seconds.values()) == now[0]


def test_a_failed_block_ends_its_part():
    now = [0.0]
    times = WallTimes(lambda: now[0])

    @times.of("saving")
    def fail():
        now[0] += 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    now[0] += 3
    assert (times.read()["saving"], times.seconds["other"]) == (2, 3)


def test_waiting_for_items_is_measured_and_using_them_is_not():
    now = [0.0]

    def items():
        for k in range(3):
            now[0] += 5
            yield k

    times = WallTimes(lambda: now[0])
    with measuring(times):
        for _ in measured_items(items(), "data"):
            now[0] += 1
    assert (times.read()["data"], times.seconds["other"]) == (15, 3)
    assert list(measured_items(items(), "data")) == [0, 1, 2]  # without a measurement


def test_compilations_of_this_thread_are_moved_out_of_the_part_that_causes_them():
    def compile_one(size):
        jax.jit(lambda x: x + size)(jax.numpy.zeros(size))

    times = WallTimes()
    with measuring(times), measured("steps"):
        compile_one(101)
        mine = times.seconds["compile"]
        thread = threading.Thread(target=compile_one, args=(102,))
        thread.start()
        thread.join()
        assert times.seconds["compile"] == mine > 0
    before = dict(times.seconds)
    compile_one(103)
    assert times.seconds == before
    assert current() is None
