import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elegy.data.permutation import epoch_permutation, index_dtype


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10_000), st.integers(1, 200))
def test_every_example_exactly_once(seed, epoch, size):
    order = epoch_permutation(seed, epoch, size)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


@given(st.integers(0, 2**32), st.integers(0, 100))
def test_it_depends_on_the_arguments_alone(seed, epoch):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = epoch_permutation(seed, epoch, 50)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(1)
    np.testing.assert_array_equal(epoch_permutation(seed, epoch, 50), first)


def test_seeds_and_epochs_give_different_orders():
    orders = {tuple(epoch_permutation(seed, epoch, 30).tolist()) for seed in range(-5, 5) for epoch in range(10)}
    assert len(orders) == 100


def test_another_process_sees_the_same_order():
    code = "from elegy.data.permutation import epoch_permutation as p; print(p(42, 3, 8).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(epoch_permutation(42, 3, 8).tolist())


def test_the_order_is_numpys_shuffle_of_a_generator_keyed_by_seed_and_epoch():
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(42, spawn_key=(3,))))
    np.testing.assert_array_equal(epoch_permutation(42, 3, 100), generator.permutation(100))


def test_orders_are_close_to_uniform():
    counts = np.zeros((4, 4))
    for epoch in range(4000):
        counts[np.arange(4), epoch_permutation(0, epoch, 4)] += 1
    # Each cell is binomial(4000, 1/4): 1000 with a deviation of 27; six deviations, at a fixed seed.
    assert np.abs(counts - 1000).max() < 165


@pytest.mark.parametrize(("size", "dtype"), [(1, np.int32), (2**31 - 1, np.int32), (2**31, np.int64)])
def test_indices_are_as_narrow_as_they_can_be(size, dtype):
    assert index_dtype(size) is dtype
