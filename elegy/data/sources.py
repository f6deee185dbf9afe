"""Sources of batches: arrays that are cut into batches, or an iterable of batches."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.data.aligned import SMALL, aligned_empty
from elegy.data.batch import named_leaves, pack, size_of, unpack
from elegy.data.blocks import Blocks
from elegy.data.columns import Columns, Given, is_list_of_named, names_of
from elegy.data.convert import as_arrays, holds_arrays, is_array_like, is_leaf
from elegy.data.examples import ExampleRows, Examples, as_examples, take_together
from elegy.data.hugging_face import dataset_columns, dataset_names, is_dataset
from elegy.data.iterables import IterableSource
from elegy.data.lazy_rows import LazyRows
from elegy.data.permutation import epoch_permutation
from elegy.data.refused import refuse_examples, refuse_list_of_dicts, refuse_non_arrays
from elegy.data.stored import StoredRows, stored_group
from elegy.data.tables import column_names, is_table, refuse_lazy_frame
from elegy.data.weights import check_class_weight, weigh_all
from elegy.names import type_name
from elegy.transfers import explicit_transfers
from elegy.types import Array, Batch, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Arrays in memory or in files, from which any rows can be gathered as a batch.

    Args:
        batch: all of the data as one batch, its leaves arrays of shape (size, ...).
        size: the number of examples.
        nbytes: the size of the arrays in bytes.
        unweighted: the data without class weights, for the validation split; None if there are no class weights.
        class_weight: the class weights that the sample weights include.
        columns: the column names of leaves that were tables, by the name of the leaf.
        blocks: how rows of files are read and shuffled; None if no array is in a file.

    Example:
        >>> source = ArraySource.of((np.arange(4.0), np.arange(4)))
        >>> source.size, source.nbytes
        (4, 64)
    """

    batch: Batch = dataclasses.field(repr=False)
    size: int
    nbytes: int
    unweighted: Batch | None = dataclasses.field(default=None, repr=False)
    class_weight: Mapping[int, float] | None = dataclasses.field(default=None, repr=False)
    columns: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict, repr=False)
    blocks: Blocks | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        batch: Batch,
        *,
        unweighted: Batch | None = None,
        class_weight: Mapping[int, float] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        where: str = "",
    ) -> ArraySource:
        """Makes a source from a batch of arrays.

        Args:
            batch: all of the data.
            unweighted: the data without class weights.
            class_weight: the class weights.
            columns: the column names of leaves that were tables, by the name of the leaf.
            where: a prefix for the names in error messages.

        Raises:
            ValueError: if the arrays have no rows, or different numbers of rows.
        """
        size = size_of(batch, where)
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
        stored = [leaf for leaf in jax.tree.leaves(batch) if isinstance(leaf, StoredRows)]
        blocks = None
        if stored:
            blocks = Blocks.of(size, sum(leaf.nbytes for leaf in stored), max(leaf.chunk for leaf in stored))
            batch = jax.tree.map(lambda leaf: leaf.in_blocks(blocks) if isinstance(leaf, StoredRows) else leaf, batch)
        return cls(batch, size, nbytes, unweighted, class_weight, columns or {}, blocks)

    @property
    def on_host(self) -> bool:
        """True if all arrays are NumPy arrays, so that a thread can gather rows without JAX."""
        return not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self.batch))

    @property
    def lazy(self) -> bool:
        """True if an array is sparse or in a file; the data must not be read or made dense as a whole then."""
        return any(isinstance(leaf, LazyRows) for leaf in jax.tree.leaves(self.batch))

    def order(self, seed: int, epoch: int, attempt: int = 0) -> np.ndarray:
        """Returns the order of the examples in an epoch; arguments as for `epoch_permutation`."""
        if self.blocks is not None:
            return self.blocks.permutation(seed, epoch, self.size, attempt)
        return epoch_permutation(seed, epoch, self.size, attempt)

    def reordered(self, rest: np.ndarray, seed: int, epoch: int, attempt: int) -> np.ndarray:
        """Returns the rest of an order in another order."""
        if self.blocks is not None:
            return self.blocks.reshuffled(rest, seed, epoch, attempt)
        return rest[epoch_permutation(seed, epoch, len(rest), attempt)]

    @functools.cached_property
    def examples(self) -> tuple[ExampleRows, ...]:
        """The arrays that are read from a data set example by example."""
        return tuple(leaf for leaf in jax.tree.leaves(self.batch) if isinstance(leaf, ExampleRows))

    @property
    def workers(self) -> int:
        """The number of workers that read the examples of data sets."""
        return max((leaf.reader.workers for leaf in self.examples), default=0)

    @contextlib.contextmanager
    def reading(self, prefetch: int = 0) -> Iterator[None]:
        """A block in which the workers of data sets keep running.

        Args:
            prefetch: as for `IterableSource.reading`; arrays are in memory, and examples have workers.
        """
        with contextlib.ExitStack() as stack:
            for reader in {id(leaf.reader): leaf.reader for leaf in self.examples}.values():
                stack.enter_context(reader.reading())
            yield

    def take(self, indices: np.ndarray) -> Batch:
        """Gathers rows as dense arrays.

        Args:
            indices: non-negative integers of any shape, such as (n,) or (steps, n).

        Returns:
            A batch of copies, whose leaves have the shape `indices.shape + leaf.shape[1:]`. JAX arrays are gathered on
            their device.

        Example:
            >>> ArraySource.of(np.array([10, 11, 12])).take(np.array([2, 0]))
            array([12, 10])
        """
        leaves, treedef, gathers = self._flat
        if not self.examples:
            return treedef.unflatten([gather(indices) for gather in gathers])
        read = take_together(leaves, indices)
        return treedef.unflatten(
            [gather(indices) if one is None else one for gather, one in zip(gathers, read, strict=True)]
        )

    @functools.cached_property
    def _flat(self) -> tuple[list[Array], Any, list[Callable[[np.ndarray], Array]]]:
        """The arrays, their tree, and for each array a function that gathers its rows."""
        leaves, treedef = jax.tree.flatten(self.batch)
        return leaves, treedef, [_gatherer(leaf) for leaf in leaves]

    def part(self, start: int, stop: int, *, weighted: bool = True) -> ArraySource:
        """Returns a source of the rows from `start` to `stop`; sparse matrices stay sparse, files are not read.

        Args:
            start: the first row.
            stop: the row after the last.
            weighted: True to include the class weights in the sample weights.
        """
        batch = self.batch if weighted or self.unweighted is None else self.unweighted
        rows = jax.tree.map(
            lambda leaf: leaf.part(start, stop) if isinstance(leaf, LazyRows) else _sliced(leaf, start, stop), batch
        )
        return ArraySource.of(rows, class_weight=self.class_weight if weighted else None, columns=self.columns)

    def slice(self, start: int, stop: int) -> Batch:
        """Returns rows as dense arrays: views of NumPy arrays, slices of JAX arrays.

        Args:
            start: the first row.
            stop: the row after the last.

        Example:
            >>> ArraySource.of(np.array([10, 11, 12])).slice(1, 3)
            array([11, 12])
        """
        if self.examples:
            return self.take(np.arange(start, min(stop, self.size)))
        return jax.tree.map(lambda leaf: _sliced(leaf, start, stop), self.batch)


def _sliced(leaf: Any, start: int, stop: int) -> Any:
    # A slice of a JAX array is compiled for its size alone, and transfers the number of its first row.
    with explicit_transfers() if isinstance(leaf, jax.Array) else contextlib.nullcontext():
        return leaf[start:stop]


def _gatherer(leaf: Array) -> Callable[[np.ndarray], Array]:
    if isinstance(leaf, jax.Array):  # 10 times as fast as `leaf[indices]` outside of jit
        return functools.partial(jnp.take, leaf, axis=0, mode="clip")
    if isinstance(leaf, np.ndarray):
        return functools.partial(_gather, leaf)
    return functools.partial(leaf.take, axis=0)


def _gather(leaf: np.ndarray, indices: np.ndarray) -> np.ndarray:
    if indices.size * leaf.nbytes < SMALL * len(leaf):
        return leaf.take(indices, axis=0)
    rows = aligned_empty((*indices.shape, *leaf.shape[1:]), leaf.dtype)
    return leaf.take(indices, axis=0, out=rows, mode="clip")  # with another mode, NumPy gathers into a second array


def as_source(
    inputs: Any,
    labels: PyTree | None = None,
    sample_weight: PyTree | None = None,
    *,
    class_weight: Mapping[int, float] | None = None,
    what: str = "fit",
    known: Any = None,
    epoch: int = 0,
    columns: Columns | None = None,
    batch_size: int | None = None,
) -> ArraySource | IterableSource:
    """Makes a source from a user's data.

    `inputs` are the inputs of all examples if there are labels or weights, or if they are an array or a tree of arrays
    (a list of numbers is an array, a list of arrays a tree, a tuple of arrays several inputs). Otherwise `inputs` yield
    batches: an iterable (a data loader, a dataset, a list of tuples), an iterator (read once), a sequence with
    `__len__` and `__getitem__`, or a function without arguments that returns an iterator. A list whose items all have
    the structure `known` also yields batches. `Examples` are single examples, with their own labels and weights.

    Args:
        inputs: a tree of arrays of shape (rows, ...), or an iterable of batches.
        labels: a tree of arrays of shape (rows, ...).
        sample_weight: an array of shape (rows,).
        class_weight: weights by class, multiplied into the sample weights.
        what: the call, for messages: `"fit"`, `"validation"`, `"evaluate"` or `"predict"`.
        known: the tree structure of the module's inputs, if it is known from earlier batches.
        epoch: the index of the first epoch, with which loaders are reseeded.
        columns: the names of inputs, labels and sample weights in dicts and tables; names among `labels` and
            `sample_weight` are added to them.
        batch_size: the batch size that the user gave, so that the items of a map-style data set are single examples.

    Raises:
        TypeError: if `inputs` are None, a string, a number or single examples, a leaf is not an array of numbers, or
            labels come with an iterable.
        ValueError: if the data is empty, arrays differ in length, a list is ragged, values are masked, integers do not
            fit into 32 bits, or class weights do not fit.

    Example:
        >>> as_source([1.0, 2.0], [0, 1])
        ArraySource(size=2, nbytes=32)
        >>> as_source((np.ones(2), np.ones(2)) for _ in range(3)).one_shot
        True
    """
    weights = None if class_weight is None else check_class_weight(class_weight)
    inputs = as_examples(inputs, batch_size)
    if isinstance(inputs, Examples):
        inputs, labels, sample_weight = _with_own_parts(inputs, labels, sample_weight, what, columns)
    refuse_examples(inputs, what)
    refuse_lazy_frame(inputs, what)
    inputs = group if (group := stored_group(inputs)) is not None else inputs
    if isinstance(inputs, Mapping) and is_leaf(inputs) and not is_array_like(inputs):  # an archive, an HDF5 file
        inputs = dict(inputs)
    if columns is not None and not _gives_batches(inputs) and not is_list_of_named(inputs):
        picked = columns.pick(inputs, f"the data of {what}", only_inputs=what == "predict")
        inputs, own_labels, own_weight = unpack(picked)
        labels = own_labels if labels is None else labels
        sample_weight = own_weight if sample_weight is None else sample_weight
    if is_dataset(inputs):
        inputs = dataset_columns(inputs, dataset_names(inputs))
    for name, part in (("labels", labels), ("sample_weight", sample_weight)):
        if part is not None and _gives_batches(inputs):
            raise TypeError(
                f"{name} were given to {what} with inputs that are {type_name(inputs)} of batches. Let "
                "it yield them: tuples of (inputs, labels) or (inputs, labels, sample_weight)."
            )
    alone = labels is None and sample_weight is None
    named = columns is not None and is_list_of_named(inputs)
    if named or _gives_batches(inputs) or (alone and (_is_list_of_tuples(inputs) or _is_list_of(inputs, known))):
        return IterableSource(inputs, class_weight=weights, what=what, epoch=epoch, columns=columns)
    refuse_non_arrays(inputs, what, or_else=_OR_BATCHES)
    if alone:
        refuse_list_of_dicts(inputs, what, known)
    where = "validation " if what == "validation" else ""
    batch = pack(
        as_arrays(inputs, where + "inputs", lazy=True),
        None if labels is None else as_arrays(labels, where + "labels", lazy=True),
        None if sample_weight is None else as_arrays(sample_weight, where + "sample_weight"),
    )
    tables = {name: column_names(leaf) for name, leaf in named_leaves((inputs, labels)) if is_table(leaf)}
    if weights is None:
        return ArraySource.of(batch, columns=tables, where=where)
    size_of(batch, where)
    return ArraySource.of(weigh_all(batch, weights), unweighted=batch, class_weight=weights, columns=tables)


def source_of(given: Given, **options: Any) -> ArraySource | IterableSource:
    """Makes a source of the data that a method was given. Options and errors as for `as_source`."""
    return as_source(given.data, given.labels, given.sample_weight, columns=given.columns, **options)


def as_validation_source(
    validation_data: Any, columns: Columns | None = None, batch_size: int | None = None
) -> ArraySource | IterableSource:
    """Makes a source from a user's validation data.

    Args:
        validation_data: a tuple or list `(inputs, labels)` or `(inputs, labels, sample_weight)`, or anything that
            `as_source` accepts without labels. An iterator lasts for as many validations as it has batches for.
        columns: the names of inputs, labels and sample weights in dicts and tables; data that is not of these kinds is
            taken as it is.
        batch_size: as for `as_source`.

    Raises:
        TypeError: as `as_source`.
        ValueError: as `as_source`, or if a tuple has more than three parts.

    Example:
        >>> as_validation_source((np.zeros((8, 2)), np.zeros(8))).size
        8
    """
    if columns is not None and _holds_names(validation_data):
        columns = dataclasses.replace(columns, strict=False)
        return as_source(validation_data, what="validation", columns=columns, batch_size=batch_size)
    if _is_list_of_parts(validation_data):
        validation_data = tuple(validation_data)
    if type(validation_data) is tuple:
        return as_source(*unpack(validation_data), what="validation", batch_size=batch_size)
    return as_source(validation_data, what="validation", batch_size=batch_size)


def _holds_names(data: Any) -> bool:
    """True if names may pick from data or from its batches."""
    return names_of(data) is not None or isinstance(data, Examples) or _gives_batches(data) or is_list_of_named(data)


def _with_own_parts(examples: Examples, labels: Any, sample_weight: Any, what: str, columns: Columns | None) -> Any:
    """Returns the inputs, labels and weights of examples, or the ones that were given beside them.

    Raises:
        TypeError: if labels or weights come from both.
    """
    inputs, own_labels, own_weight = unpack(examples.only(columns, f"the data of {what}", what == "predict").rows())
    for name, part, own in (("labels", labels, own_labels), ("sample_weight", sample_weight, own_weight)):
        if part is not None and own is not None:
            raise TypeError(f"{name} were given to {what} with examples that contain them: {examples!r}.")
    return inputs, own_labels if labels is None else labels, own_weight if sample_weight is None else sample_weight


def _gives_batches(inputs: Any) -> bool:
    if isinstance(inputs, (str, bytes)) or not is_leaf(inputs) or is_array_like(inputs) or names_of(inputs) is not None:
        return False
    if hasattr(inputs, "__iter__") or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")):
        return True
    return callable(inputs) and _takes_no_arguments(inputs)


def _takes_no_arguments(function: Callable) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _is_list_of_tuples(inputs: Any) -> bool:
    """True for a list of tuples, which are batches: a list of several inputs contains arrays."""
    return (
        type(inputs) is list and len(inputs) > 0 and all(type(item) is tuple and holds_arrays(item) for item in inputs)
    )


def _is_list_of(inputs: Any, known: Any) -> bool:
    """True if all items of a list have the structure of the module's inputs, so that each is a batch."""
    return (
        type(inputs) is list
        and len(inputs) > 0
        and known is not None
        and all(holds_arrays(item) and jax.tree.structure(item) == known for item in inputs)
    )


def _is_list_of_parts(data: Any) -> bool:
    """True for a list such as `[x, y]`, which means `(x, y)`; False for a list of tuples or of numbers."""
    return (
        type(data) is list
        and 2 <= len(data) <= 3
        and not _is_list_of_tuples(data)
        and all(part is None or holds_arrays(part) for part in data)
    )


_OR_BATCHES = (
    ", or an iterable of batches: a generator, a data loader, or a function without arguments that returns an iterator"
)
