"""Converts the user's data to sources of batches."""

from typing import TYPE_CHECKING

from elegy.data.batch import pack, unpack
from elegy.data.buckets import BucketedBatches
from elegy.data.check import check_finite
from elegy.data.examples import Examples
from elegy.data.first_batches import first_batches
from elegy.data.iterables import IterableSource
from elegy.data.packing import PackedSequences, pack_sequences
from elegy.data.permutation import epoch_permutation
from elegy.data.prefetch import prefetch
from elegy.data.sequences import pad_sequences
from elegy.data.sources import ArraySource, as_source
from elegy.data.split import split
from elegy.data.weights import balanced_class_weight
from elegy.suggestions import module_getattr

__all__ = [
    "ArraySource",
    "BucketedBatches",
    "Examples",
    "IterableSource",
    "PackedSequences",
    "as_source",
    "balanced_class_weight",
    "check_finite",
    "epoch_permutation",
    "first_batches",
    "pack",
    "pack_sequences",
    "pad_sequences",
    "prefetch",
    "split",
    "unpack",
]

if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__)
