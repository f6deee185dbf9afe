"""Data: from what a user gives to batches."""

from elegy.data.batch import pack, pad_rows, rows, take_rows, unpack
from elegy.data.check import check_finite
from elegy.data.convert import as_arrays, as_batch
from elegy.data.iterables import IterableSource
from elegy.data.permutation import epoch_permutation
from elegy.data.plan import DEFAULT_BATCH_SIZE, EpochPlan
from elegy.data.prefetch import prefetch
from elegy.data.sources import ArraySource, as_source, as_validation_source
from elegy.data.split import split
from elegy.data.weights import check_class_weight, weigh_classes

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "ArraySource",
    "EpochPlan",
    "IterableSource",
    "as_arrays",
    "as_batch",
    "as_source",
    "as_validation_source",
    "check_class_weight",
    "check_finite",
    "epoch_permutation",
    "pack",
    "pad_rows",
    "prefetch",
    "rows",
    "split",
    "take_rows",
    "unpack",
    "weigh_classes",
]
