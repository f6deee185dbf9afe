"""Refuses inputs that are not data, with an error that says what to give instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from elegy.lazy import is_instance_of
from elegy.names import type_name


def refuse_examples(inputs: Any, what: str) -> None:
    """Refuses data sets of single examples, which could be mistaken for batches.

    Args:
        inputs: the inputs of the call.
        what: the call, for the message.

    Raises:
        TypeError: if the inputs are a map-style PyTorch `Dataset`, or a Hugging Face `DatasetDict`.
    """
    if is_instance_of(inputs, "datasets", "DatasetDict", "IterableDatasetDict"):
        raise TypeError(
            f"the inputs of {what} are {type_name(inputs)} with the splits {list(inputs)}: choose one, such as "
            "data['train']."
        )
    dataset = is_instance_of(inputs, "torch.utils.data", "Dataset")
    if dataset and not is_instance_of(inputs, "torch.utils.data", "IterableDataset"):
        raise TypeError(
            f"the inputs of {what} are {type_name(inputs)}, a PyTorch Dataset, whose items are single examples. Give "
            f"batch_size, `{what}(dataset, batch_size=32)`, or a loader of batches: "
            "`torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)`, with "
            "`batch_size=None` if each item is a batch."
        )


def refuse_list_of_dicts(inputs: Any, what: str, known: Any) -> None:
    """Refuses a list of dicts with the same keys, which may be batches, examples or several inputs.

    Args:
        inputs: the inputs of the call, without labels.
        what: the call, for the message.
        known: the tree structure of the module's inputs, if it is known from earlier batches.

    Raises:
        TypeError: if the inputs are such a list, and no earlier batch had its structure.
    """
    if type(inputs) is not list or not inputs or not all(isinstance(item, Mapping) for item in inputs):
        return
    keys = list(inputs[0])
    if what == "predict" or any(list(item) != keys for item in inputs):
        return
    if known is not None and jax.tree.structure(inputs) == known:
        return
    raise TypeError(
        f"the inputs of {what} are a list of {len(inputs)} dict(s) with the keys {keys}, which may be batches, "
        "examples or several inputs. Give batches as tuples, `[({'image': batch['image']}, batch['label']) for batch "
        "in batches]`; stack examples, `{'image': np.stack([example['image'] for example in examples])}`, and give "
        "their labels as the argument after them; give several inputs as a tuple."
    )


def refuse_non_arrays(inputs: Any, what: str, *, or_else: str = "") -> None:
    """Refuses inputs that are None, a string or a number.

    Args:
        inputs: the inputs of the call.
        what: the call, for the message.
        or_else: what the call accepts besides a tree of arrays.

    Raises:
        TypeError: if the inputs are None, a string or a number.
    """
    if inputs is None or isinstance(inputs, (str, bytes, int, float, complex)):
        given = "None" if inputs is None else f"{type_name(inputs)} ({inputs!r})"
        raise TypeError(
            f"the inputs of {what} are {given}. Give an array, a tree (dict, list, tuple) of arrays{or_else}."
        )
