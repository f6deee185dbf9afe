"""The data sets of a program: which one a command uses, and its first rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from elegy.cli.errors import CliError
from elegy.cli.program import Data
from elegy.data import ArraySource, unpack
from elegy.data.batch import PARTS, join_name
from elegy.data.columns import Given
from elegy.data.sources import source_of
from elegy.names import array_name
from elegy.trainer.evaluation.evaluations import Evaluation, is_dict_of_sets
from elegy.types import PyTree

NAMES = ("test", "validation", "train")


def chosen(data: Data, name: str | None) -> tuple[str, dict[str, dict[str, Any]]]:
    """Returns a data set of a program: the arguments of `Trainer.evaluate`, by the name of the part.

    Args:
        data: what the program's `data` returned.
        name: `"test"`, `"validation"` or `"train"`; None for the first of them that there is.

    Returns:
        The name, and the parts; a data set that is not a dict of data sets has one, with the name `""`.

    Raises:
        CliError: if there is no such data set.
    """
    sets = {"test": data.test_data, "validation": data.validation_data, "train": data.train}
    there = [key for key in NAMES if sets[key] is not None]
    name = there[0] if name is None else name
    if name not in there:
        raise CliError(f"data() returned no {name}_data, so --on {name} is not possible. It has: {', '.join(there)}.")
    found = sets[name]
    if name == "train":
        return name, {"": data.train}
    parts = found if is_dict_of_sets(found) else {"": found}
    return name, {key: _arguments(part) for key, part in parts.items()}


def _arguments(part: Any) -> dict[str, Any]:
    given = part.data if isinstance(part, Evaluation) else part
    values = tuple(given) if type(given) is list and 2 <= len(given) <= 3 else given
    inputs, labels, sample_weight = unpack(values)
    return {"inputs": inputs, "labels": labels, "sample_weight": sample_weight}


def first_batch(data: Data, rows: int = 1) -> dict[str, Any]:
    """Returns the first rows of the training data, or the first batch of an iterable, as arguments of `evaluate`."""
    source = source_of(Given.of("fit", None, **data.train))
    if isinstance(source, ArraySource):
        batch = source.take(np.arange(min(rows, source.size)))
    else:
        batch = next(iter(source.batches()))
        source.end()
    inputs, labels, sample_weight = unpack(batch)
    return {"inputs": inputs, "labels": labels, "sample_weight": sample_weight}


@contextlib.contextmanager
def told_by_data(data: Callable[[], Data], inputs: PyTree, where: str) -> Iterator[None]:
    """A block in which an error of inputs that are not like those of the program's data says how they differ.

    The data is only read after an error, because it may be missing where a model is used.

    Args:
        data: reads the program's data.
        inputs: the arrays of inputs.
        where: what the inputs came from, for the message.

    Raises:
        CliError: in place of an error of such inputs.
    """
    try:
        yield
    except Exception as error:
        try:
            known = first_batch(data())["inputs"]
        except Exception:
            raise error from None
        given, wanted = _described(inputs), _described(known)
        if given == wanted:
            raise
        raise CliError(
            f"{where} has {_listed(given)}, but the inputs of the program's data are {_listed(wanted)}."
        ) from error


def _described(inputs: PyTree) -> dict[str, str]:
    """The dtype and the shape of each array by path, but for the number of rows."""
    return {
        join_name(PARTS[0], path).removeprefix(f"{PARTS[0]}/"): array_name(leaf, ("rows", *np.shape(leaf)[1:]))
        for path, leaf in jax.tree_util.tree_leaves_with_path(inputs)
    }


def _listed(described: dict[str, str]) -> str:
    return ", ".join(f"{name}: {text}" for name, text in described.items()) or "no array"
