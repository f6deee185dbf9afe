"""Matches losses and metrics in a dict with outputs, targets and sample weights of the same keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from elegy.losses.lookup import Indexing, Renaming, lookup
from elegy.names import contents, listed
from elegy.suggestions import near

_BY_KEY = ("target", "preds", "sample_weight")


def takes_output(thing: Any, keys: tuple[str, ...], preds: Any) -> bool:
    """True if a loss or a metric that is given under a key receives only the output of that key.

    Args:
        thing: the loss or the metric. With `index_into` for the outputs, it receives all of them.
        keys: the keys of the dicts that contain it, from the outermost.
        preds: the outputs.

    Example:
        >>> takes_output(None, ("a",), {"a": 1, "b": 2}), takes_output(None, ("a",), 1)
        (True, False)
    """
    return bool(keys) and "preds" not in indexed_arguments(thing) and _holds(preds, keys)


def given_by_key(thing: Any, keys: tuple[str, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the values of a step for a loss or a metric.

    Under the key of an output it receives only this output, and only the target and the sample weights of the key if
    they are in dicts. If the weights have no entry for the key, all examples have the weight 1.

    Args:
        thing: the loss or the metric.
        keys: the keys of the dicts that contain it, from the outermost.
        kwargs: the values by name.

    Example:
        >>> given_by_key(None, ("a",), {"preds": {"a": 1, "b": 2}, "target": {"a": 3, "b": 4}, "inputs": 5})
        {'preds': 1, 'target': 3, 'inputs': 5}
    """
    own = takes_output(thing, keys, kwargs.get("preds"))
    indexed = indexed_arguments(thing)
    if not own and not (keys and "preds" in indexed):
        return kwargs
    out = dict(kwargs)
    names = [name for name in (_BY_KEY if own else ("sample_weight",)) if name not in indexed]
    for name in names:
        if _holds(out.get(name), keys):
            for key in keys:
                out[name] = lookup(out[name], key)
        elif name == "sample_weight" and isinstance(out.get(name), Mapping):
            out[name] = None
    if out.get("sample_weight") is None and isinstance(kwargs.get("sample_weight"), Mapping):
        mask = out.get("mask")
        out["sample_weight"] = None if mask is None else jnp.asarray(mask).astype(jnp.float32)
    return out


def check_weight_keys(received: Iterable[tuple[tuple[str, ...], Any]], weights: Any, preds: Any) -> None:
    """Checks that every key of a dict of sample weights is that of an output, a loss or a metric.

    Args:
        received: of each loss and metric, the keys of the dicts that contain it, and the sample weights it receives.
        weights: the sample weights of the step.
        preds: the outputs.

    Raises:
        ValueError: naming the keys whose weights nothing would use. A loss, a metric or a function that receives the
            whole dict may use any key.

    Example:
        >>> check_weight_keys([(("a",), None)], {"a": 1}, {"a": 1, "b": 2})
    """
    if not isinstance(weights, Mapping):
        return
    parts = list(received)
    if any(given is weights for _, given in parts):
        return
    known = {keys[0] for keys, _ in parts if keys and keys[0] in weights}
    known |= {key for key in weights if _holds(preds, (key,))}
    if unknown := [key for key in weights if key not in known]:
        raise ValueError(
            f"sample_weight has {listed(unknown)}, but no output, loss or metric has this key: {contents(preds)}."
        )


def explain_by_key(
    error: Exception, thing: Any, what: str, keys: tuple[str, ...], given: Any, kwargs: Mapping[str, Any]
) -> None:
    """Explains the error of a loss or a metric that is given under a key.

    Args:
        error: its error, which gets a note if it received only the output of its key, or all outputs under another key.
        thing: the loss or the metric.
        what: its name in messages.
        keys: the keys of the dicts that contain it.
        given: the values that it received.
        kwargs: all values by name.

    Raises:
        TypeError: instead of the error, if it received a dict of sample weights.
    """
    weight = given.get("sample_weight")
    if given.get("preds") is not kwargs.get("preds"):
        key = "/".join(keys)
        error.add_note(
            f"{what} received the output of the key {key!r} alone, because it was given under that key. "
            "Under another key it receives all outputs."
        )
        if isinstance(target := given.get("target"), Mapping) and not _holds(kwargs.get("target"), keys):
            error.add_note(f"It received all labels, because they have no key {key!r}: {contents(target)}.")
    elif isinstance(weight, Mapping):
        raise TypeError(
            f"{what} needs one array of sample weights, but they are a dict: {contents(weight)}. Give one "
            "array, choose one with `.index_into(sample_weight=...)`, or give the losses in a dict by the keys of the "
            "outputs."
        ) from error
    elif keys and isinstance(preds := kwargs.get("preds"), Mapping) and "preds" not in indexed_arguments(thing):
        key = "/".join(keys)
        close = near(keys[-1], [name for name in preds if isinstance(name, str)], 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        error.add_note(
            f"{what} received all outputs, because none of them has the key {key!r}: {contents(preds)}.{hint}"
        )


def indexed_arguments(thing: Any) -> frozenset[str]:
    """Returns the names of the arguments that a loss or a metric indexes into, before `rename_arguments`.

    Example:
        >>> from elegy.losses.mean_squared_error import MeanSquaredError
        >>> sorted(indexed_arguments(MeanSquaredError().index_into(target="a", preds="a")))
        ['preds', 'target']
    """
    inner = getattr(thing, "loss", None)
    inner = getattr(thing, "metric", None) if inner is None else inner
    if inner is None:
        return frozenset()
    found = indexed_arguments(inner)
    change = getattr(thing, "change", None)
    return change.indexed(found) if isinstance(change, (Indexing, Renaming)) else found


def _holds(value: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if isinstance(value, Mapping):
            if key not in value:
                return False
        elif key not in getattr(value, "_fields", ()):
            return False
        value = lookup(value, key)
    return True
