"""Arrays that were placed before are found on the devices, unless they changed, and are deleted with their owners."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elegy.loading.device_copies import _PART, DeviceCopies, digest
from elegy.strategies import Jit, Sharded

MANY = 2**20


@pytest.mark.parametrize("strategy", [Jit(), Sharded()], ids=["jit", "sharded"])
def test_an_array_is_placed_once_until_it_changes(strategy):
    copies, x = DeviceCopies(MANY, digests=True), np.arange(48, dtype=np.float32).reshape(12, 4)
    first = copies.place({"a": x, "b": x[2:]}, strategy)
    again = copies.place({"a": x, "b": x[2:]}, strategy)  # another view of the same rows
    assert first["a"] is again["a"]
    assert first["b"] is again["b"]
    x[11, 3] = np.nan
    changed = copies.place({"a": x, "b": x[2:]}, strategy)
    np.testing.assert_array_equal(changed["a"], x)
    np.testing.assert_array_equal(changed["b"], x[2:])
    assert first["a"][11, 3] == 47.0  # a running pass keeps what it began with


def test_views_of_one_memory_are_told_apart():
    copies, x = DeviceCopies(MANY, digests=True), np.arange(16, dtype=np.int32)
    views = [x, x[::2], x[1::2], x.reshape(4, 4), x.reshape(4, 4).T, x.view(np.float32), x[::-1]]
    for _ in range(2):
        for view in views:
            np.testing.assert_array_equal(copies.place(view, Jit()), view)
    assert copies.nbytes == sum(view.nbytes for view in views)


def test_the_digest_sees_every_byte_and_the_order_of_the_parts():
    x = np.random.default_rng(0).integers(0, 256, 2 * _PART + 5, np.uint8)
    before = digest(x)
    for place in (0, _PART - 1, _PART, len(x) - 1):
        other = x.copy()
        other[place] ^= 1
        assert digest(other) != before
    assert digest(np.concatenate([x[_PART : 2 * _PART], x[:_PART], x[2 * _PART :]])) != before
    assert digest(x.copy()) == before


def test_copies_are_deleted_with_the_array_with_the_store_and_above_the_limit():
    copies, x, y = DeviceCopies(64, digests=True), np.zeros(12, np.float32), np.ones(12, np.float32)
    view = x[2:]
    of_x = weakref.ref(copies.place(view, Jit()))
    del view
    assert copies.has(x[2:])
    assert of_x() is not None
    of_y = weakref.ref(copies.place(y, Jit()))  # 40 + 48 bytes: more than the limit
    gc.collect()
    assert of_x() is None
    assert of_y() is not None
    del y
    gc.collect()
    assert of_y() is None
    assert copies.nbytes == 0
    last = weakref.ref(copies.place(x, Jit()))
    del copies
    gc.collect()
    assert last() is None


def test_jax_arrays_are_found_without_a_digest_and_not_kept():
    copies, x = DeviceCopies(MANY, digests=False), jnp.arange(16.0)
    placed = weakref.ref(copies.place(x, Sharded()))
    assert copies.place(x, Sharded()) is placed()
    assert len(placed().sharding.device_set) == jax.device_count()
    alone = jax.device_put(jnp.arange(3.0), jax.devices()[0])
    assert copies.place(alone, Jit()) is not None
    kept = weakref.ref(alone)
    del x, alone
    gc.collect()
    assert placed() is None
    assert kept() is None


def test_numpy_arrays_are_copied_again_where_a_digest_costs_more():
    copies, x = DeviceCopies(MANY), np.arange(4)  # the tests run on the CPU
    copies.place(x, Jit())
    assert not copies.has(x)
    x[0] = 7
    assert copies.place(x, Jit()).tolist() == [7, 1, 2, 3]
