"""Loaders give each example once, in order, whatever the layout, and go on where a pass was cut."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from elegy.data import ArraySource, IterableSource
from elegy.loading import Cursor, Part, batch_loader
from elegy.loading.chunks import BatchLayout
from elegy.strategies import Jit

DATA = np.arange(22.0, dtype=np.float32)


def loader(iterable=False, **options):
    source = IterableSource([DATA[i : i + 4] for i in range(0, 22, 4)]) if iterable else ArraySource.of(DATA)
    size = None if iterable else 4
    return batch_loader(source, processes=1, batch_size=size, limit=None, what="fit", **options)


def rows(chunks) -> list[float]:
    """The real examples of chunks, in the order of their batches."""
    seen = []
    for chunk in chunks:
        data = DATA[chunk.index] if chunk.kind == "resident" else np.asarray(chunk.data)
        data = data[None] if chunk.kind == "single" else data
        for batch, size in zip(data, chunk.sizes, strict=False):
            seen += batch[:size].tolist()
    return seen


@pytest.mark.parametrize("iterable", [False, True], ids=["arrays", "iterable"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_every_example_comes_once(iterable, steps, masked):
    layout = BatchLayout(steps=steps, masked=masked)
    chunks = list(loader(iterable).chunks(lambda batch: layout, Jit()))
    assert rows(chunks) == DATA.tolist()
    assert sum(chunk.count for chunk in chunks) == 6
    shapes = {chunk.batch.shape for chunk in chunks}
    assert shapes == ({(4,)} if masked else {(4,), (2,)})


def test_resident_data_is_gathered_by_index():
    layout = BatchLayout(steps=4, masked=True, resident=True)
    order = np.arange(22)[::-1]
    chunks = list(loader().chunks(lambda batch: layout, Jit(), Part(order)))
    assert rows(chunks) == DATA[::-1].tolist()
    assert chunks[0].data is chunks[1].data


def test_a_pass_goes_on_where_it_was_cut():
    layout = BatchLayout(steps=2, masked=True)
    rest = loader().chunks(lambda batch: layout, Jit(), Part(start=Cursor(batches=2, examples=8)))
    assert rows(rest) == DATA[8:].tolist()


def test_padding_divides_over_the_replicas():
    layout = BatchLayout(masked=True, multiple=8)
    (chunk, *_) = loader().chunks(lambda batch: layout, Jit())
    assert chunk.data.shape == (8,)
    assert chunk.mask.tolist() == [True] * 4 + [False] * 4
    assert loader().rows_of(layout) == 8


def test_a_batch_of_another_tree_is_refused():
    source = IterableSource([DATA[:4], {"x": DATA[:4]}])
    chunks = batch_loader(source, processes=1, batch_size=None, limit=None, what="fit").chunks(
        lambda batch: BatchLayout(), Jit()
    )
    with pytest.raises(ValueError, match="batch 1 has the structure"):
        jax.tree.map(lambda chunk: chunk, list(chunks))
