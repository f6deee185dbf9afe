"""Errors of keyword arguments and attributes that a class does not have: what to write, or the nearest name."""

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
OF_TRAINER = {
    **dict.fromkeys(("lr", "learning_rate"), _RATE),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm", "clipnorm", "clipvalue"), _CLIPPED),
    **dict.fromkeys(("accelerator", "devices", "device", "num_nodes"), _DEVICES),
    **dict.fromkeys(("logger", "log_every_n_steps"), _LOGGED),
    **dict.fromkeys(("default_root_dir", "enable_checkpointing"), _WRITTEN),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch", "eval_steps", "eval_strategy"), _VALIDATED),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation_steps"),
        "write `Trainer(accumulate=...)`, the number of microbatches into which a batch is cut",
    ),
    **dict.fromkeys(("fp16", "bf16"), "write `Trainer(precision='mixed_float16')` or `'mixed_bfloat16'`"),
    "num_sanity_val_steps": "write `fit(sanity_check=2)`",
    **dict.fromkeys(("profiler", "profile"), "write `fit(callbacks=[eg.callbacks.Profiler(directory)])`"),
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
"""What to write for the keyword arguments of other libraries."""

_EVALUATED = "write `trainer.evaluate(inputs, labels)`"
_RATES = "write `trainer.find_learning_rate(...)`"
_BATCHES = "write `trainer.find_batch_size(...)`"
ATTRIBUTES_OF_TRAINER = {
    **dict.fromkeys(("test", "validate", "score"), _EVALUATED),
    "compile": "the loss, the metrics and the optimizer are arguments of `Trainer`, which compiles the steps itself",
    "train": "write `trainer.fit(inputs, labels)`",
    "partial_fit": "write `trainer.train_on_batch(inputs, labels)`; a second `fit` continues, too",
    "predict_proba": "write `trainer.predict(inputs)`, and `jax.nn.softmax` of it if the module returns logits",
    "tune": f"{_RATES} or `trainer.find_batch_size(...)`",
    "lr_find": _RATES,
    "scale_batch_size": _BATCHES,
    "save_checkpoint": "write `trainer.save(path)`",
    **dict.fromkeys(("load_checkpoint", "load_from_checkpoint", "load_model"), "write `trainer.restore(path)`"),
    "global_step": "write `trainer.step`",
    "current_epoch": "write `trainer.epoch`",
    "should_stop": "write `trainer.stop_training`",
    **dict.fromkeys(("callback_metrics", "logged_metrics"), "write `trainer.history`, the values of each epoch"),
    **dict.fromkeys(("params", "parameters", "get_weights", "weights"), "write `trainer.state.get_params()`"),
    "set_weights": "write `trainer.state = trainer.state.set_params(params)`",
    **dict.fromkeys(("module", "model"), "write `trainer.state`, the module with its parameters"),
}
"""What to write for the methods and attributes of other libraries."""

_DIRECTORY = "the directory is the first argument, `directory`; checkpoints in it are named `step_00000024`"
_INTERVAL = "write `every=eg.Every(steps=500)`, or `epochs=`, `examples=` or `seconds=`"
OF_MODEL_CHECKPOINT = {
    **dict.fromkeys(("dirpath", "filepath", "path"), _DIRECTORY),
    "filename": f"{_DIRECTORY}, and `checkpoint.best_path` is the best one",
    "save_best_only": "write `save_last=False`, with the name of a log for `monitor`",
    "save_weights_only": "checkpoints hold the whole state; `trainer.save_weights(path)` saves the weights alone",
    "max_to_keep": "write `save_top_k=`",
    "verbose": "it prints nothing; `checkpoint.best_path` and `checkpoint.last_path` are the paths",
    **dict.fromkeys(("save_freq", "period", "every_n_epochs", "every_n_train_steps", "train_time_interval"), _INTERVAL),
}
OF_EARLY_STOPPING = {
    **dict.fromkeys(("tol", "threshold", "min_change"), "write `min_delta=`"),
    "n_iter_no_change": "write `patience=`",
    "stopping_threshold": "a callback may set `event.trainer.stop_training = True`",
    "validation_fraction": "write `fit(validation_split=...)`",
    "check_finite": "`TerminateOnNaN()` ends a run whose loss is not finite",
}
_LOG_INTERVAL = "write `every=eg.Every(steps=50)`"
OF_LOGGERS = {
    **dict.fromkeys(("update_freq", "log_every_n_steps", "flush_logs_every_n_steps", "save_freq"), _LOG_INTERVAL),
    "histogram_freq": "`eg.callbacks.WeightHistogram()` logs histograms of the parameters",
    **dict.fromkeys(
        (
            "name",
            "version",
            "save_dir",
            "logdir",
            "dir",
            "directory",
            "dirpath",
            "path",
            "file",
            "filepath",
            "filename",
        ),
        "the path is the first argument, and a second run there gets a number",
    ),
}


def explain_keywords(cls: type, *names: str, theirs: Mapping[str, str]) -> None:
    """Replaces the error of Python for an unknown keyword in methods of a class; type checkers see the methods.

    Args:
        cls: the class.
        *names: the names of the methods, `"__init__"` among them.
        theirs: what to write for the names of other libraries.

    Example:
        >>> class Robot:
        ...     def __init__(self, speed): ...
        ...     def walk(self, steps): ...
        >>> explain_keywords(Robot, "__init__", "walk", theirs={"pace": "write `speed=`"})
        >>> Robot(1).walk(step=3)
        Traceback (most recent call last):
        ...
        TypeError: walk() got an unexpected keyword argument 'step'. Did you mean 'steps'?
        >>> Robot(steps=3)
        Traceback (most recent call last):
        ...
        TypeError: Robot() got an unexpected keyword argument 'steps': it is an argument of `walk`.
        >>> Robot(pace=3)
        Traceback (most recent call last):
        ...
        TypeError: Robot() got an unexpected keyword argument 'pace': write `speed=`.
    """
    methods = {name: getattr(cls, name) for name in names}
    parameters = {
        cls.__name__ if name == "__init__" else name: [*inspect.signature(method).parameters][1:]
        for name, method in methods.items()
    }
    for own, (name, method) in zip(parameters, methods.items(), strict=True):
        setattr(cls, name, _explaining(own, method, parameters, theirs))


def _explaining(
    own: str, method: Callable[..., Any], parameters: Mapping[str, list[str]], theirs: Mapping[str, str]
) -> Callable[..., Any]:
    known = frozenset(parameters[own])

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not known.issuperset(kwargs):
            unknown = next(name for name in kwargs if name not in known)
            raise TypeError(_message(own, unknown, parameters, theirs))
        return method(*args, **kwargs)

    return call


def _message(own: str, name: str, parameters: Mapping[str, list[str]], theirs: Mapping[str, str]) -> str:
    text = f"{own}() got an unexpected keyword argument {name!r}"
    if name in theirs:
        return f"{text}: {theirs[name]}."
    if places := [f"`{place}`" for place, others in parameters.items() if name in others]:
        return f"{text}: it is an argument of {' and '.join(places)}."
    if similar := near(name, parameters[own]):
        return f"{text}. Did you mean {' or '.join(map(repr, similar))}?"
    for place, others in parameters.items():
        if similar := near(name, others, 1):
            return f"{text}. Did you mean {similar[0]!r} of `{place}`?"
    return f"{text}. There are: {', '.join(parameters[own])}."


def explain_attributes(cls: type, theirs: Mapping[str, str]) -> None:
    """Adds to the error of Python for a missing attribute what to write; type checkers see the attributes.

    Args:
        cls: the class.
        theirs: what to write for the names of other libraries.

    Example:
        >>> class Robot:
        ...     def walk(self, steps): ...
        >>> explain_attributes(Robot, {"run": "write `robot.walk(steps)`"})
        >>> Robot().run
        Traceback (most recent call last):
        ...
        AttributeError: 'Robot' object has no attribute 'run': write `robot.walk(steps)`.
        >>> Robot().walks
        Traceback (most recent call last):
        ...
        AttributeError: 'Robot' object has no attribute 'walks'. Did you mean 'walk'?
    """

    def missing(self: Any, name: str) -> Any:
        if hasattr(type(self), name):  # a property whose function raised an AttributeError of its own
            return object.__getattribute__(self, name)
        text = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name in theirs:
            raise AttributeError(f"{text}: {theirs[name]}.")
        public = [] if name.startswith("_") else [one for one in dir(type(self)) if not one.startswith("_")]
        similar = near(name, public) if public else []
        raise AttributeError(f"{text}. Did you mean {' or '.join(map(repr, similar))}?" if similar else text)

    cls.__getattr__ = missing  # type: ignore[attr-defined]
