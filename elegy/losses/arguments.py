"""Passes a loss or a metric those of the available values that its parameters name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from elegy.names import listed, there_are

ALIASES: Mapping[str, str] = {
    "predictions": "preds",
    "logits": "preds",
    "y_pred": "preds",
    "targets": "target",
    "labels": "target",
    "y_true": "target",
}
"""Parameter names of Optax and scikit-learn, with the names used here."""

KNOWN = ("inputs", "target", "preds", "sample_weight", "mask", "parameters", "batch_stats", "examples", "values")
"""The names of the values that a loop passes to losses and metrics."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parameters_of(function: Callable) -> dict[str, inspect.Parameter] | None:
    """Returns the parameters of a function by name, or None if the function has no signature.

    Example:
        >>> list(parameters_of(lambda target, preds: 0))
        ['target', 'preds']
    """
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def names_argument(function: Callable, name: str) -> bool:
    """True if a function has a parameter of this name (`**kwargs` does not count).

    Example:
        >>> names_argument(lambda target, **rest: 0, "rest")
        False
    """
    parameter = (parameters_of(function) or {}).get(name)
    return parameter is not None and parameter.kind is not inspect.Parameter.VAR_KEYWORD


def sees_examples(function: Callable) -> bool:
    """True if a function has a parameter for values of the examples, not only for the model's parameters.

    Example:
        >>> sees_examples(lambda y_true, y_pred: 0), sees_examples(lambda parameters: 0)
        (True, False)
    """
    parameters = parameters_of(function)
    examples = ("inputs", "target", "preds")
    return parameters is None or any(
        source in examples for source in _sources(parameters, dict.fromkeys(examples)).values()
    )


def call_with_named(function: Callable, available: Mapping[str, Any], what: str) -> Any:
    """Calls a function with those of the available values that its parameters name.

    A value that is None counts as missing. `ALIASES` are other names for the same values. A function with exactly two
    required positional parameters of unknown names is called as `function(target, preds)`.

    Args:
        function: any callable.
        available: values by name.
        what: the name of the function in messages, for example `the loss 'mse'`.

    Returns:
        The result of the function.

    Raises:
        TypeError: if a required parameter has no value.

    Example:
        >>> call_with_named(lambda labels, logits: logits - labels, {"target": 1, "preds": 3}, "the loss 'f'")
        2
        >>> call_with_named(lambda a, b: (a, b), {"target": 1, "preds": 3}, "the loss 'f'")
        (1, 3)
    """
    args, kwargs = _bind(function, {k: v for k, v in available.items() if v is not None}, what)
    return function(*args, **kwargs)


def _bind(function: Callable, present: dict[str, Any], what: str) -> tuple[list[Any], dict[str, Any]]:
    parameters = parameters_of(function)
    kinds = {p.kind for p in (parameters or {}).values()}
    if parameters is None or kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        _require(present, ("target", "preds"), what, present)
        return [present["target"], present["preds"]], {}

    names = _sources(parameters, present)
    required = [
        name
        for name, p in parameters.items()
        if p.default is inspect.Parameter.empty
        and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    _require({name for name in required if names.get(name) in present}, required, what, present)

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kwargs.update({k: v for k, v in present.items() if k not in names.values() and k not in kwargs})
        elif names.get(name) not in present:
            continue
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            args.append(present[names[name]])
        else:
            kwargs[name] = present[names[name]]
    return args, kwargs


def _sources(parameters: Mapping[str, inspect.Parameter], present: Mapping[str, Any]) -> dict[str, str]:
    """Maps each parameter with a known name to the name of its value."""
    named = {}
    for name in parameters:
        source = name if name in present or name in KNOWN else ALIASES.get(name)
        if source is not None:
            named[name] = source
    positional = [
        name for name, p in parameters.items() if p.kind in _POSITIONAL and p.default is inspect.Parameter.empty
    ]
    unknown = [name for name in positional if name not in named]
    if len(positional) == 2 and len(unknown) == 2:
        named.update(zip(positional, ("target", "preds"), strict=True))
    elif len(positional) == 2 and len(unknown) == 1:
        # In Optax the predictions beside `targets` have various names (`log_predictions`, `scores`, ...).
        (other,) = (named[name] for name in positional if name in named)
        counterpart = {"target": "preds", "preds": "target"}.get(other)
        if counterpart is not None:
            named[unknown[0]] = counterpart
    return named


def _require(found: Any, required: Any, what: str, present: Mapping[str, Any]) -> None:
    missing = [name for name in required if name not in found]
    if not missing:
        return
    # Tracing sorts the keys of a dict, so the order is restored.
    ordered = [*(name for name in KNOWN if name in present), *(name for name in present if name not in KNOWN)]
    if any(ALIASES.get(name, name) == "target" for name in missing):
        hint = (
            "Labels are the second part of the data: `fit(x, y)`, `evaluate(x, y)`, `validation_data=(x, y)`; an "
            "autoencoder's are its inputs, `fit(x, x)`."
        )
    elif all(name in KNOWN or name in ALIASES for name in missing):
        hint = "Pass it, or give the parameter a default."
    else:
        aliases = ", ".join(f"{alias} (= {name})" for alias, name in ALIASES.items())
        hint = (
            f"Name the parameters after what is available ({aliases} also work), give the others a default, "
            "or take exactly two positional arguments (target, preds)."
        )
    verb = "is" if len(missing) == 1 else "are"
    raise TypeError(f"{what} needs {listed(missing)}, which {verb} missing: {there_are(ordered)}. {hint}")
