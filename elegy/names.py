"""Names for logs and error messages."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

OTHER_CONTAINERS = "the containers or static fields differ"
"""The difference of two trees that hold the same leaves."""


def snake_case(name: str) -> str:
    """Converts a class name to a log name.

    Example:
        >>> snake_case("MeanSquaredError"), snake_case("L1L2"), snake_case("MyAUCScore")
        ('mean_squared_error', 'l1l2', 'my_auc_score')
    """
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def name_of(thing: Any, anonymous: str = "loss_fn") -> str:
    """Returns the log name of a loss, a metric, a function or a class instance.

    Args:
        thing: the loss, metric, function or instance.
        anonymous: the name of a `lambda`.

    Example:
        >>> def my_loss(target, preds): ...
        >>> name_of(my_loss), name_of(lambda target, preds: 0)
        ('my_loss', 'loss_fn')
    """
    given = getattr(thing, "name", None)
    if isinstance(given, str) and given:
        return given
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__name__", None)
    if name == "<lambda>":
        return anonymous
    return name if isinstance(name, str) else snake_case(type(thing).__name__)


def unique_names(names: Iterable[str]) -> list[str]:
    """Makes names unique with `_1`, `_2`, ... in order of appearance.

    Example:
        >>> unique_names(["loss", "acc", "loss", "loss"])
        ['loss', 'acc', 'loss_1', 'loss_2']
    """
    out: list[str] = []
    taken: set[str] = set()
    for name in names:
        candidate, k = name, 0
        while candidate in taken:
            k += 1
            candidate = f"{name}_{k}"
        taken.add(candidate)
        out.append(candidate)
    return out


def path_name(path: Any) -> str:
    """Formats a JAX key path with slashes.

    Example:
        >>> import jax
        >>> [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path({"a": [1, 2]})]
        ['a/0', 'a/1']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"


def array_name(value: Any, shape: Sequence[object] | None = None) -> str:
    """Formats an array's dtype and shape as JAX does, and the type of any other object.

    Args:
        value: an array, a `jax.ShapeDtypeStruct`, a Python number, or any object.
        shape: another shape to show, with numbers or names.

    Example:
        >>> array_name(np.zeros((2, 3), np.float32)), array_name(True), array_name("x")
        ('float32[2,3]', 'bool[]', 'a str')
    """
    if isinstance(value, (bool, int, float, complex)):
        value = np.empty((), jax.dtypes.canonicalize_dtype(np.result_type(value)))
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return type_name(value)
    return f"{value.dtype}[{','.join(map(str, value.shape if shape is None else shape))}]"


def distribution_shapes(value: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the batch shape and the event shape of a distribution, None for any other object.

    A distribution is recognised by what NumPyro, Distrax and TensorFlow Probability have in common: `log_prob`,
    `batch_shape` and `event_shape`. A joint distribution has several event shapes and gives None.

    Args:
        value: any object.

    Example:
        >>> distribution_shapes(np.zeros(2)) is None
        True
    """
    if not callable(getattr(value, "log_prob", None)):
        return None
    try:
        batch, event = (tuple(int(size) for size in getattr(value, name)) for name in ("batch_shape", "event_shape"))
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return None
    return batch, event


def type_name(value: Any) -> str:
    """Returns the type of a value, with its article.

    Example:
        >>> type_name([1]), type_name(1), type_name(None)
        ('a list', 'an int', 'None')
    """
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def listed(names: Iterable[object]) -> str:
    """Formats names for a sentence.

    Example:
        >>> listed(["a"]), listed(["a", 0, "c"])
        ("'a'", "'a', 0 and 'c'")
    """
    shown = [repr(name) for name in names]
    return " and ".join(part for part in (", ".join(shown[:-1]), *shown[-1:]) if part)


def there_are(names: Iterable[object]) -> str:
    """Returns a clause that lists the available names.

    Example:
        >>> there_are(["inputs", "preds"]), there_are(["preds"]), there_are([])
        ("there are 'inputs' and 'preds'", "there is only 'preds'", 'there is nothing')
    """
    names = list(names)
    if not names:
        return "there is nothing"
    return f"there {'are' if len(names) > 1 else 'is only'} {listed(names)}"


def contents(value: Any) -> str:
    """Returns a clause that describes a value in which a lookup failed.

    Example:
        >>> contents({"a": 1, "b": 2}), contents([1, 2]), contents(np.zeros(3, np.float32))
        ("the keys are 'a' and 'b'", 'it is a list of length 2', 'it is float32[3]')
    """
    if isinstance(value, Mapping):
        return "it is empty" if not value else f"the {'keys are' if len(value) > 1 else 'only key is'} {listed(value)}"
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)) is not None:
        return f"it is {type_name(value)} with the fields {listed(fields)}"
    if isinstance(value, (list, tuple)):
        return f"it is {type_name(value)} of length {len(value)}"
    return f"it is {array_name(value)}"


def differences(before: Any, after: Any) -> list[str]:
    """Lists the differences of two trees: paths, shapes and dtypes of leaves, otherwise `OTHER_CONTAINERS`.

    Example:
        >>> differences({"a": np.zeros(2, int), "b": 1.0}, {"a": np.zeros(3, int), "c": 1.0})
        ['b is gone (it was float32[])', 'c is new (float32[])', 'a was int64[2], now it is int64[3]']
        >>> differences([1.0], (1.0,))
        ['the containers or static fields differ']
    """
    old, new = (
        {path_name(path): array_name(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (before, after)
    )
    found = [f"{name} is gone (it was {old[name]})" for name in old if name not in new]
    found += [f"{name} is new ({new[name]})" for name in new if name not in old]
    found += [f"{name} was {old[name]}, now it is {new[name]}" for name in old if new.get(name, old[name]) != old[name]]
    old_structure: object = jax.tree.structure(before)
    return found or ([] if old_structure == jax.tree.structure(after) else [OTHER_CONTAINERS])
