import numpy as np
import pytest

from elegy.data import ArraySource
from elegy.data.plan import EpochPlan
from elegy.loading import Cursor, Part, chunks
from elegy.loading.chunks import BatchLayout, array_chunks
from elegy.strategies import Jit


@pytest.mark.parametrize("block", [1, 3 * 8 * 12, 10**6])
@pytest.mark.parametrize(("limit", "done", "masked"), [(7, 0, False), (7, 0, True), (2, 0, False), (5, 16, True)])
def test_batches_cut_from_blocks_are_the_rows_of_the_order(monkeypatch, block, limit, done, masked):
    monkeypatch.setattr(chunks, "BLOCK_BYTES", block)
    x, y = np.random.default_rng(0).normal(size=(53, 2)).astype("float32"), np.arange(53, dtype="int32")
    order = np.random.default_rng(1).permutation(53)
    taken = []
    monkeypatch.setattr(
        ArraySource, "take", lambda self, index, take=ArraySource.take: (taken.append(index), take(self, index))[1]
    )
    plan = EpochPlan(53, 8, done=done)
    layout = BatchLayout(masked=masked)
    found = list(array_chunks(ArraySource.of((x, y)), plan, layout, Jit(), None, Part(order, limit, Cursor(40))))
    assert [chunk.first for chunk in found] == list(range(40, 40 + limit))
    for i, chunk in enumerate(found):
        index = order[done + 8 * i : done + 8 * i + 8]
        assert chunk.sizes == (len(index),)
        np.testing.assert_array_equal(chunk.data[0][: len(index)], x[index])
        np.testing.assert_array_equal(chunk.data[1][: len(index)], y[index])
        assert len(chunk.data[1]) == (8 if masked else len(index))
    full = min(limit, (53 - done) // 8)
    assert len(taken) == -(-full // max(1, block // (8 * 12))) + (limit > full)
