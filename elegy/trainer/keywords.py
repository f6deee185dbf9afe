"""Errors of keyword arguments that a method does not have: they name the nearest one, or the place of the argument."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from elegy.suggestions import near

_RATE = "the learning rate is an argument of the optimizer, `Trainer(..., optimizer=optax.adam(1e-3))`"
_CLIPPED = "write `optax.clip_by_global_norm(value)` before the optimizer, in an `optax.chain`"
_DEVICES = "`Trainer(strategy=...)` says on which devices steps run, and `JAX_PLATFORMS=cpu` chooses the kind"
_LOGGED = "a logger is one of `callbacks`, such as `eg.loggers.TensorBoard(directory, every=eg.Every(steps=50))`"
_WRITTEN = "write `Trainer(run_dir=...)`, a folder for checkpoints and logs"
_VALIDATED = "write `fit(validation_freq=...)`, a number of epochs or `eg.Every(steps=500)`"
_ELSEWHERE = {
    **dict.fromkeys(("lr", "learning_rate"), _RATE),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm", "clipnorm", "clipvalue"), _CLIPPED),
    **dict.fromkeys(("accelerator", "devices", "device", "num_nodes"), _DEVICES),
    **dict.fromkeys(("logger", "log_every_n_steps"), _LOGGED),
    **dict.fromkeys(("default_root_dir", "enable_checkpointing"), _WRITTEN),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch"), _VALIDATED),
    "num_epochs": "write `fit(epochs=...)`",
    **dict.fromkeys(("x", "train_dataloaders", "dataloaders"), "the data is the first argument, without a name"),
    **dict.fromkeys(("y", "targets"), "the labels are the second argument, `labels`"),
    "val_dataloaders": "write `fit(validation_data=...)`",
    "ckpt_path": "write `fit(resume=...)`, or `trainer.restore(path)` before `evaluate` and `predict`",
    "return_dict": "`evaluate` always returns a dict",
    "deterministic": "write `Trainer(seed=...)`: a CPU gives the same bits from run to run. On a GPU, set "
    "`XLA_FLAGS=--xla_gpu_deterministic_ops=true`",
    "detect_anomaly": "write `Trainer(nonfinite='raise')`",
    "enable_progress_bar": "write `fit(verbose=0)`",
    "run_eagerly": "write `Trainer(strategy='eager')`",
}
"""What to write for the names of other libraries."""


def explain_keywords(cls: type, *names: str) -> None:
    """Replaces the error of Python for an unknown keyword in methods of a class; type checkers see the methods.

    Args:
        cls: the class.
        *names: the names of the methods, `"__init__"` among them.

    Example:
        >>> class Robot:
        ...     def __init__(self, speed): ...
        ...     def walk(self, steps): ...
        >>> explain_keywords(Robot, "__init__", "walk")
        >>> Robot(1).walk(step=3)
        Traceback (most recent call last):
        ...
        TypeError: walk() got an unexpected keyword argument 'step'. Did you mean 'steps'?
        >>> Robot(steps=3)
        Traceback (most recent call last):
        ...
        TypeError: Robot() got an unexpected keyword argument 'steps': it is an argument of `walk`.
    """
    methods = {name: getattr(cls, name) for name in names}
    parameters = {
        cls.__name__ if name == "__init__" else name: [*inspect.signature(method).parameters][1:]
        for name, method in methods.items()
    }
    for own, (name, method) in zip(parameters, methods.items(), strict=True):
        setattr(cls, name, _explaining(own, method, parameters))


def _explaining(own: str, method: Callable[..., Any], parameters: Mapping[str, list[str]]) -> Callable[..., Any]:
    known = frozenset(parameters[own])

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not known.issuperset(kwargs):
            raise TypeError(_message(own, next(name for name in kwargs if name not in known), parameters))
        return method(*args, **kwargs)

    return call


def _message(own: str, name: str, parameters: Mapping[str, list[str]]) -> str:
    text = f"{own}() got an unexpected keyword argument {name!r}"
    if name in _ELSEWHERE:
        return f"{text}: {_ELSEWHERE[name]}."
    if places := [f"`{place}`" for place, others in parameters.items() if name in others]:
        return f"{text}: it is an argument of {' and '.join(places)}."
    if similar := near(name, parameters[own]):
        return f"{text}. Did you mean {' or '.join(map(repr, similar))}?"
    for place, others in parameters.items():
        if similar := near(name, others, 1):
            return f"{text}. Did you mean {similar[0]!r} of `{place}`?"
    return f"{text}. There are: {', '.join(parameters[own])}."
