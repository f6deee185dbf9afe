"""The table of data sources: one function for each kind, all of which give the same examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import grain
import h5py
import numpy as np
import pandas
import polars
import pyarrow
import pytest
import scipy.sparse
import zarr
from map_style import Rows

from elegy.data import Examples

ROWS, BATCH = 40, 16
rng = np.random.default_rng(0)
X = rng.integers(-4, 5, (ROWS, 3)).astype(np.float32)
Y = (X.sum(1, keepdims=True) + np.arange(ROWS)[:, None] % 3).astype(np.float32)
W = rng.integers(1, 4, ROWS).astype(np.float32)
COLUMNS = {"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "y": Y[:, 0], "w": W}
NAMES = {"labels": ["y"], "sample_weight": "w"}
KEYS = {"inputs": "x", "labels": "y", "sample_weight": "w"}
ARRAYS = {"x": X, "y": Y, "w": W}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of data.

    Args:
        make: a function of a folder that returns the arguments of `fit` that are data.
        shuffled: True if `fit` shuffles it as it shuffles arrays; otherwise the examples come in order.
        batched: True if the data are batches of `BATCH` rows, so that there is no `batch_size`.
        marks: what its tests need.
    """

    make: Callable[[Path], dict[str, Any]]
    shuffled: bool = True
    batched: bool = False
    marks: tuple[pytest.MarkDecorator, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The other arguments of `fit`, and of `evaluate` and `predict`."""
        return {} if self.batched else {"batch_size": BATCH}


def memory_map(folder: Path) -> dict[str, Any]:
    for name, array in ARRAYS.items():
        np.save(folder / f"{name}.npy", array)
    x, y, w = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
    return {"data": x, "labels": y, "sample_weight": w}


def hdf5(folder: Path) -> h5py.File:
    with h5py.File(folder / "data.h5", "w") as file:
        for name, array in ARRAYS.items():
            file.create_dataset(name, data=array, chunks=(7, *array.shape[1:]))
    return h5py.File(folder / "data.h5", "r")


def hdf5_arrays(folder: Path) -> dict[str, Any]:
    file = hdf5(folder)
    return {"data": file["x"], "labels": file["y"], "sample_weight": file["w"]}


def zarr_group(folder: Path) -> zarr.Group:
    group = zarr.open_group(folder / "data.zarr", mode="w")
    for name, array in ARRAYS.items():
        group.create_array(name, data=array, chunks=(7, *array.shape[1:]))
    return zarr.open_group(folder / "data.zarr", mode="r")


def zarr_arrays(folder: Path) -> dict[str, Any]:
    group = zarr_group(folder)
    return {"data": group["x"], "labels": group["y"], "sample_weight": group["w"]}


def hugging_face() -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {**{name: array.tolist() for name, array in ARRAYS.items()}, "text": ["t"] * ROWS}
    )


def stream(**shuffle: Any) -> datasets.IterableDataset:
    rows = hugging_face().to_iterable_dataset(num_shards=2)
    return rows.shuffle(**shuffle) if shuffle else rows


def batches() -> list[dict[str, np.ndarray]]:
    return [{name: array[i : i + BATCH] for name, array in ARRAYS.items()} for i in range(0, ROWS, BATCH)]


def tuples() -> list[tuple[np.ndarray, ...]]:
    return [tuple(batch.values()) for batch in batches()]


class Batches:
    """A sequence of batches."""

    def __len__(self) -> int:
        return len(batches())

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
        return tuples()[i]


def grain_map() -> grain.MapDataset:
    return grain.MapDataset.source(Rows(X, Y, W)).batch(BATCH)


def grain_loader() -> grain.DataLoader:
    sampler = grain.samplers.IndexSampler(ROWS, num_epochs=1, shuffle=False)
    return grain.DataLoader(data_source=Rows(X, Y, W), sampler=sampler, operations=[grain.transforms.Batch(BATCH)])


def tensorflow_dataset() -> Any:
    import tensorflow

    return tensorflow.data.Dataset.from_tensor_slices((X, Y, W)).batch(BATCH)


def torch_loader(**options: Any) -> Any:
    from torch.utils import data

    return data.DataLoader(Rows(X, Y, W), batch_size=BATCH, **options)


def torch_dataset() -> Any:
    import torch
    from torch.utils import data

    return data.TensorDataset(*map(torch.from_numpy, (X, Y, W)))


def stateful_loader() -> Any:
    from torchdata import stateful_dataloader

    return stateful_dataloader.StatefulDataLoader(Rows(X, Y, W), batch_size=BATCH)


TABLES = {
    "arrays": Kind(lambda folder: {"data": X, "labels": Y, "sample_weight": W}),
    "dict": Kind(lambda folder: {"data": dict(ARRAYS), **KEYS}),
    "pandas": Kind(lambda folder: {"data": pandas.DataFrame(COLUMNS), **NAMES}),
    "pandas series": Kind(
        lambda folder: {
            "data": pandas.DataFrame(X),
            "labels": pandas.DataFrame(Y),
            "sample_weight": pandas.Series(W, dtype="Float32"),
        }
    ),
    "polars": Kind(lambda folder: {"data": polars.DataFrame(COLUMNS), **NAMES}),
    "pyarrow": Kind(lambda folder: {"data": pyarrow.table(COLUMNS), **NAMES}),
    "sparse": Kind(lambda folder: {"data": scipy.sparse.csr_array(X), "labels": Y, "sample_weight": W}),
    "memory map": Kind(memory_map),
    "h5py": Kind(hdf5_arrays),
    "h5py file": Kind(lambda folder: {"data": hdf5(folder), **KEYS}),
    "zarr": Kind(zarr_arrays),
    "zarr group": Kind(lambda folder: {"data": zarr_group(folder), **KEYS}),
    "hugging face": Kind(lambda folder: {"data": hugging_face(), **KEYS}),
    "hugging face stream": Kind(lambda folder: {"data": stream(), **KEYS}, shuffled=False),
    "dict batches": Kind(lambda folder: {"data": batches(), **KEYS}, shuffled=False, batched=True),
    "record batches": Kind(
        lambda folder: {"data": pyarrow.table(COLUMNS).to_batches(BATCH), **NAMES}, shuffled=False, batched=True
    ),
}
"""Tables and data sets that give the examples of `X`, `Y`, `W`, by name."""

TENSORFLOW = pytest.mark.needs(library="tensorflow")
ORDER = pytest.mark.filterwarnings("ignore:the interrupted epoch goes on after as many batches")  # it is not shuffled
TORCH = pytest.mark.needs(library="torch")
STATE = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # what torchdata calls in torch


def loader(make: Callable[[], Any], *marks: pytest.MarkDecorator) -> Kind:
    """Batches of tuples, in order."""
    return Kind(lambda folder: {"data": make()}, shuffled=False, batched=True, marks=marks)


LOADERS = {
    "map-style": Kind(lambda folder: {"data": Rows(X, Y, W)}),
    "map-style of dicts": Kind(lambda folder: {"data": Rows(X, Y, W, names="xyw"), **KEYS}),
    "threads": Kind(lambda folder: {"data": Examples(Rows(X, Y, W), workers=2)}),
    "processes": Kind(lambda folder: {"data": Examples(Rows(X, Y, W), workers=2, kind="processes")}),
    "examples beside labels": Kind(lambda folder: {"data": Examples(X), "labels": Y, "sample_weight": W}),
    "list of batches": loader(tuples),
    "sequence of batches": loader(Batches),
    "function": loader(lambda: lambda: iter(tuples())),
    "grain map": loader(grain_map),
    "grain iter": loader(lambda: grain_map().to_iter_dataset()),
    "grain loader": loader(grain_loader),
    "tensorflow": loader(tensorflow_dataset, TENSORFLOW, ORDER),
    "torch": loader(torch_loader, TORCH),
    "torch workers": loader(
        lambda: torch_loader(num_workers=1, multiprocessing_context="forkserver"), TORCH, pytest.mark.slow
    ),
    "torch stateful": loader(stateful_loader, TORCH, STATE),
    "torch dataset": Kind(lambda folder: {"data": torch_dataset()}, marks=(TORCH,)),
}
"""Loaders and data sets of single examples that give the same."""

SOURCES = TABLES | LOADERS
KINDS = [pytest.param(name, marks=kind.marks) for name, kind in SOURCES.items()]
