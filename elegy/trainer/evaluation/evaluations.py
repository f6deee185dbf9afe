"""The evaluations of a fit: which data, under which names, at which intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from elegy.data import ArraySource, IterableSource
from elegy.data.columns import Columns
from elegy.data.convert import is_array_like
from elegy.data.plan import DEFAULT_BATCH_SIZE
from elegy.data.sources import as_validation_source
from elegy.integers import positive_int_or_none
from elegy.metrics import LossesAndMetrics
from elegy.metrics.named import LossTree, MetricTree
from elegy.module.averaging import Weights
from elegy.module.levels import level_of
from elegy.trainer.config import FitConfig
from elegy.trainer.execution import ExecutionPlan
from elegy.types import Every


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A data set that `fit` evaluates, with its own rhythm.

    Args:
        data: `(inputs, labels[, sample_weight])`, or an iterable of batches.
        every: the interval, such as `Every(epochs=5)` or, inside of epochs too, `Every(steps=500)`; None for that of
            `fit`.
        batch_size: the number of examples of a step, over all devices; None for that of `fit`.
        steps: the largest number of batches; None for that of `fit`.
        weights: which parameters to evaluate, as `weights` of `Trainer.evaluate`; None for those of `fit`.
        loss: the losses to compute, as `loss` of `Trainer`; None for those of the trainer.
        metrics: the metrics to compute, as `metrics` of `Trainer`; None for those of the trainer.

    Raises:
        TypeError: if a loss or a metric is not one, `every` is not an `Every`, or a number is not an integer.
        ValueError: if a number is not positive.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
        >>> sets = {"near": (x, 3 * x), "far": eg.Evaluation((9 * x, 27 * x), every=eg.Every(epochs=2))}
        >>> history = trainer.fit(x, 3 * x, epochs=4, validation_data=sets, verbose=0).history
        >>> len(history["val_near_loss"]), len(history["val_far_loss"])
        (4, 2)
    """

    data: Any
    every: Every | None = None
    batch_size: int | None = None
    steps: int | None = None
    weights: Weights | None = None
    loss: LossTree | None = None
    metrics: MetricTree | None = None
    measures: LossesAndMetrics | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.every is not None and not isinstance(self.every, Every):
            raise TypeError(f"Evaluation(every={self.every!r}): give an interval, such as `Every(epochs=5)`.")
        for name in ("batch_size", "steps"):
            positive_int_or_none(f"Evaluation's {name}", getattr(self, name))
        if self.loss is not None or self.metrics is not None:
            object.__setattr__(self, "measures", LossesAndMetrics(losses=self.loss, metrics=self.metrics))


@dataclasses.dataclass(frozen=True)
class EvaluationSource:
    """A data set of a fit, read.

    Args:
        prefix: the beginning of the names of its values in the logs of an epoch.
        source: the data.
        every: the interval from one evaluation to the next.
        batch_size: the number of examples of a step, or None.
        steps: the largest number of batches, or None.
        weights: which parameters are evaluated.
        measures: the losses and metrics that replace those of the trainer, or None.
    """

    prefix: str
    source: ArraySource | IterableSource
    every: Every
    batch_size: int | None
    steps: int | None
    weights: Weights
    measures: LossesAndMetrics | None = None

    def check_level(self, cls: type) -> None:
        """Checks that losses and metrics of its own can be computed.

        Args:
            cls: the class of the module.

        Raises:
            ValueError: if the module writes its own test step.
        """
        if self.measures is not None and (level := level_of(cls, "test")) != "high":
            step = "managed_test_step" if level == "managed" else "test_step"
            raise ValueError(
                f"the evaluation {self.prefix!r} has losses or metrics of its own, but {cls.__name__}.{step} computes "
                "its values itself: log them there, or leave out `loss` and `metrics` of the Evaluation."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """An evaluation that is ready to run.

    Args:
        prefix: the beginning of the names of its values in the logs of an epoch.
        every: the interval from one to the next.
        plan: how its batches run.
        weights: which parameters are evaluated.
    """

    prefix: str
    every: Every
    plan: ExecutionPlan
    weights: Weights

    @property
    def names(self) -> frozenset[str] | None:
        """The names of its values in the logs of an epoch; None if they are not known before it runs."""
        return None if self.plan.names is None else frozenset(self.prefix + name for name in self.plan.names)


def evaluation_sources(
    validation_data: Any, config: FitConfig, columns: Columns | None = None, examples: bool = False
) -> list[EvaluationSource]:
    """Reads `validation_data`: one data set, or a dict of them.

    Args:
        validation_data: the argument of `fit`.
        config: what was asked for.
        columns: the names of inputs, labels and sample weights in dicts and tables.
        examples: True if the training data are single examples, so that map-style validation data is, too.

    Raises:
        TypeError: if a data set or its name cannot be used.
        ValueError: if a data set is empty, or its arrays differ in length.
    """
    if validation_data is None:
        return []
    sets = validation_data if is_dict_of_sets(validation_data, columns) else {None: validation_data}
    return [_read(name, data, config, columns, examples) for name, data in sets.items()]


def _read(name: Any, data: Any, config: FitConfig, columns: Columns | None, examples: bool) -> EvaluationSource:
    if name is not None and not (isinstance(name, str) and name):
        raise TypeError(f"validation_data has the name {name!r}: the names of data sets are strings.")
    given = data if isinstance(data, Evaluation) else Evaluation(data)
    batch_size = config.validation_batch_size if given.batch_size is None else given.batch_size
    try:
        # With a batch size, a map-style data set has single examples.
        size = config.batch_size or DEFAULT_BATCH_SIZE if examples and batch_size is None else batch_size
        source = as_validation_source(given.data, columns, size)
    except (TypeError, ValueError) as error:
        if name is not None:
            error.add_note(f"It is the data set {name!r} of validation_data.")
        raise
    return EvaluationSource(
        "val_" if name is None else f"val_{name}_",
        source,
        config.validation_freq if given.every is None or config.fast_dev_run else given.every,
        batch_size,
        config.validation_steps if given.steps is None else given.steps,
        config.validation_weights if given.weights is None else given.weights,
        given.measures,
    )


def is_dict_of_sets(data: Any, columns: Columns | None = None) -> bool:
    """True for a dict of data sets; a dict with arrays is the inputs of one data set."""
    if not isinstance(data, Mapping) or not data:
        return False
    values = data.values()
    if any(isinstance(value, Evaluation) for value in values):
        return True
    if columns is not None:
        return not columns.has_names_of(data)
    return not any(is_array_like(value) or isinstance(value, Mapping) for value in values)
