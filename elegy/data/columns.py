"""Picks inputs, labels and sample weights by name from dicts, tables and data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from elegy.data import tables
from elegy.data.batch import PARTS, pack, unpack
from elegy.data.convert import is_array_like, is_leaf
from elegy.data.hugging_face import dataset_columns, dataset_names, is_dataset
from elegy.names import type_name
from elegy.types import Batch, PyTree

Names = str | Sequence[str]
"""The name of a key or a column, or several names."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which keys of a dict, or columns of a table, are the parts of a batch.

    One name picks the value itself: the array of a dict, the column of a table, of shape (rows,). Several names, and
    what is left for the inputs, keep the form of the data: a dict of arrays, or a table, which is an array of shape
    (rows, columns).

    Args:
        inputs: the names of the inputs; None for all that are not labels or sample weights.
        labels: the names of the labels, or None.
        sample_weight: the name of the sample weights, or None.
        strict: False to leave batches that are tuples as they are.

    Example:
        >>> batch = {"image": np.zeros((4, 2)), "label": np.arange(4)}
        >>> inputs, labels = Columns(labels="label").pick(batch)
        >>> list(inputs), labels
        (['image'], array([0, 1, 2, 3]))
    """

    inputs: Names | None = None
    labels: Names | None = None
    sample_weight: Names | None = None
    strict: bool = True

    @classmethod
    def of(cls, inputs: Any, labels: Any, sample_weight: Any) -> Self | None:
        """Makes an instance of those arguments that are names; None if none is.

        Example:
            >>> Columns.of(None, "label", np.zeros(3)), Columns.of(None, np.zeros(3), None)
            (Columns(inputs=None, labels='label', sample_weight=None, strict=True), None)
        """
        parts: list[Any] = [part if is_names(part) else None for part in (inputs, labels, sample_weight)]
        return None if parts == [None] * 3 else cls(*parts)

    def pick(self, data: Any, where: str = "the data", *, only_inputs: bool = False) -> Batch:
        """Picks the parts of a batch, or of all data.

        Args:
            data: a mapping, a table, a structured array or a data set with columns.
            where: the name of the data in messages.
            only_inputs: True to leave out labels and sample weights, which may be missing.

        Returns:
            The batch, whose leaves are not converted yet.

        Raises:
            TypeError: if the data has no names.
            ValueError: if a name is missing, or several columns have it, or no name is left for the inputs.
        """
        if not self.strict and type(data) in (tuple, list):
            return data
        names = names_of(data)
        if names is None:
            raise TypeError(
                f"a key or a column is named ({self}), but {where} is {type_name(data)}, which has no names. Give a "
                "dict, a table (pandas, Polars, PyArrow) or a data set with columns, or pass the arrays themselves."
            )
        rest, used = self.used(names, where, only_inputs)
        if len(set(names)) < len(names):
            _check_once(used, names, where)
        if is_dataset(data):
            data = dataset_columns(data, [name for name in names if name in used])
        if not _listed(rest):
            raise ValueError(f"{where} has the names {names}, of which none is left for the inputs beside {self}.")
        inputs = _picked(data, rest)
        if only_inputs:
            return pack(inputs)
        parts = [None if part is None else _picked(data, part) for part in (self.labels, self.sample_weight)]
        return pack(inputs, *parts)

    def used(self, names: list[Any], where: str, only_inputs: bool = False) -> tuple[Names, list[str]]:
        """Returns the names of the inputs, and all names that are used.

        Args:
            names: the names of the data.
            where: as for `pick`.
            only_inputs: as for `pick`.

        Raises:
            ValueError: if a name is missing.

        Example:
            >>> Columns("image", "label").used(["image", "label", "text"], "the data")
            ('image', ['image', 'label'])
        """
        taken = [name for part in (self.labels, self.sample_weight) for name in _listed(part)]
        if not only_inputs:
            self._check(("labels", "sample_weight"), names, where)
        self._check(("inputs",), names, where)
        rest = self.inputs if self.inputs is not None else [name for name in names if name not in taken]
        return rest, [*_listed(rest), *([] if only_inputs else taken)]

    def has_names_of(self, data: Mapping) -> bool:
        """True if a dict has one of the names, so that it is data, and not a dict of data sets."""
        return any(name in data for part in PARTS for name in _listed(getattr(self, part)))

    def _check(self, parts: Sequence[str], names: list[Any], where: str) -> None:
        for part in parts:
            for name in _listed(getattr(self, part)):
                if name not in names:
                    raise ValueError(
                        f"{part}={getattr(self, part)!r}: {where} has no key or column {name!r}. It has {names}."
                    )

    def __str__(self) -> str:
        """Returns the arguments as they were written."""
        return ", ".join(f"{part}={getattr(self, part)!r}" for part in PARTS if getattr(self, part) is not None)


@dataclasses.dataclass(frozen=True)
class Given:
    """The data that a method of the trainer was given, with names apart from arrays.

    Args:
        data: the data.
        labels: the labels of all examples; None if they are in the data.
        sample_weight: the weights of all examples; None if they are in the data.
        columns: the names of the parts in the data, or None.
    """

    data: Any
    labels: Any = None
    sample_weight: Any = None
    columns: Columns | None = None

    @classmethod
    def of(cls, what: str, data: Any, inputs: Any, labels: Any = None, sample_weight: Any = None) -> Self:
        """Reads the arguments of a method.

        Args:
            what: the method, for messages.
            data: the first argument, or None.
            inputs: the names of the inputs; if there is no first argument, the data.
            labels: labels, or names.
            sample_weight: weights, or a name.

        Raises:
            TypeError: if `inputs` are not names although there is a first argument.

        Example:
            >>> Given.of("fit", {"x": 1, "y": 2}, None, "y").columns.labels, Given.of("fit", None, [1.0], [2.0]).data
            ('y', [1.0])
        """
        if data is None:
            data, inputs = inputs, None
        if inputs is not None and not is_names(inputs):
            raise TypeError(
                f"{what} was given the data and inputs={type_name(inputs)}: beside the data, `inputs` must be the "
                "names of the keys or columns to use, such as ('image', 'mask')."
            )
        if not is_list_of_named(data) and names_of(data) is None and (is_array_like(data) or not is_leaf(data)):
            # Beside arrays, a list of strings is text, which an error of its own refuses.
            labels_are_text = isinstance(labels, (list, tuple)) and is_names(labels)
            columns = Columns.of(inputs, None if labels_are_text else labels, sample_weight)
            return cls(data, None if isinstance(labels, str) else labels, _unnamed(sample_weight), columns)
        columns = Columns.of(inputs, labels, sample_weight)
        return cls(data, _unnamed(labels), _unnamed(sample_weight), columns)

    def batch(self, what: str, *, only_inputs: bool = False) -> Batch:
        """Returns the data as one batch, whose leaves are not converted yet.

        Args:
            what: the method, for messages.
            only_inputs: True for the inputs alone, where a tuple is several inputs; otherwise a tuple that is given
                alone is `(inputs, labels[, sample_weight])`.

        Raises:
            TypeError: as `Columns.pick`.
            ValueError: as `Columns.pick`.

        Example:
            >>> Given.of("check", {"x": 1, "y": 2}, None, "y").batch("check"), Given((1, 2)).batch("check")
            (({'x': 1}, 2), (1, 2))
        """
        data = self.data
        if self.columns is not None:
            data = self.columns.pick(data, f"the batch of {what}", only_inputs=only_inputs)
        elif is_dataset(data):
            data = dataset_columns(data, dataset_names(data))
        elif only_inputs or self.labels is not None or self.sample_weight is not None:
            data = pack(data)
        inputs, labels, sample_weight = unpack(data)
        if only_inputs:
            return pack(inputs)
        labels, sample_weight = (
            own if given is None else given
            for own, given in ((labels, self.labels), (sample_weight, self.sample_weight))
        )
        return pack(inputs, labels, sample_weight)


def _unnamed(part: Any) -> Any:
    return None if is_names(part) else part


def is_names(value: Any) -> bool:
    """True for a string, or a list or tuple of strings.

    Example:
        >>> is_names("label"), is_names(("image", "mask")), is_names([1, 2])
        (True, True, False)
    """
    return isinstance(value, str) or (
        type(value) in (list, tuple) and len(value) > 0 and all(isinstance(name, str) for name in value)
    )


def names_of(data: Any) -> list[Any] | None:
    """Returns the names of the keys or columns of the data; None if it has none.

    Example:
        >>> names_of({"a": 1}), names_of(np.zeros(3))
        (['a'], None)
    """
    if isinstance(data, Mapping) and not is_array_like(data):  # a sparse matrix may be a mapping
        return list(data)
    if tables.is_table(data):
        return tables.column_names(data)
    if is_dataset(data):
        return dataset_names(data)
    if isinstance(data, np.ndarray) and data.dtype.names:
        return list(data.dtype.names)
    return None


def is_list_of_named(data: Any) -> bool:
    """True for a list of dicts or tables, which are batches if names say where their labels are.

    Example:
        >>> is_list_of_named([{"x": 1}]), is_list_of_named([(1, 2)])
        (True, False)
    """
    return type(data) is list and len(data) > 0 and all(names_of(item) is not None for item in data)


def _check_once(used: list[Any], names: list[Any], where: str) -> None:
    for name in used:
        if names.count(name) > 1:
            raise ValueError(
                f"{where} has {names.count(name)} columns {name!r}, so the name does not say which one is meant. "
                f"Rename them, or choose others with `inputs=`. It has {names}."
            )


def _listed(names: Names | None) -> list[str]:
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def _picked(data: Any, names: Names) -> PyTree:
    if isinstance(names, str):
        return data[names]
    if tables.is_table(data):
        return tables.select(data, names)
    return {name: data[name] for name in names}
