"""Several metrics as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from elegy.losses.by_key import explain_by_key, given_by_key, takes_output
from elegy.losses.target_check import check_target
from elegy.metrics.function import as_metric, metric_name
from elegy.metrics.losses import check_aux_values, scalar_aux
from elegy.metrics.metric import Metric, flatten_value, updated
from elegy.metrics.named import MetricTree, flatten_named, output_names
from elegy.metrics.reduce import Mean
from elegy.names import unique_names
from elegy.pytree import field, static_field
from elegy.types import PyTree


class MetricSet(Metric):
    """The states of several metrics, by name and in order."""

    names: tuple[str, ...] = static_field(init=False)
    metrics: tuple[Metric, ...] = field(init=False)

    def reset(self) -> Self:
        """Returns the metrics without data."""
        return self.replace(metrics=tuple(metric.reset() for metric in self.metrics))

    def merge(self, other: Self) -> Self:
        """Returns the metrics of both data.

        Args:
            other: the same metrics of other data.
        """
        return self.replace(metrics=tuple(a.merge(b) for a, b in zip(self.metrics, other.metrics, strict=True)))

    def aggregate(self) -> Self:
        """Returns the metrics of all replicas' data, from leaves with a leading axis of replicas."""
        return self.replace(metrics=tuple(metric.aggregate() for metric in self.metrics))

    def compute(self) -> dict[str, Any]:
        """Returns each metric's value by name."""
        return {name: metric.compute() for name, metric in zip(self.names, self.metrics, strict=True)}

    def compute_logs(self) -> dict[str, Any]:
        """Returns each metric's value by name; the values of a dict as `name/key`."""
        entries = self.log_entries()
        return dict(zip(unique_names(name for name, _ in entries), (value for _, value in entries), strict=True))

    def log_entries(self) -> list[tuple[str, Any]]:
        """Returns names and values in order; the names may repeat."""
        return [
            entry
            for name, metric in zip(self.names, self.metrics, strict=True)
            for entry in flatten_value("" if metric.brings_names else name, metric.compute())
        ]


class Metrics(MetricSet):
    """Accumulates metrics over batches; each receives only the arguments that it names.

    Args:
        metrics: a metric, loss or function, or a list or dict of them. If the outputs are a dict with the same key, a
            metric receives the output, the target and the sample weights of its key.
        name: see `Metric`.
        dtype: see `Metric`.

    Raises:
        TypeError: if one of them is not a metric.

    Example:
        >>> from elegy.metrics import MeanAbsoluteError, MeanSquareError
        >>> metrics = Metrics({"a": MeanSquareError(), "b": [MeanAbsoluteError()]})
        >>> list(metrics.update(target=jnp.zeros(1), preds=jnp.ones(1)).compute())
        ['a', 'b/mean_absolute_error']
    """

    keys: tuple[tuple[str, ...], ...] = static_field(init=False)
    own_names: tuple[str, ...] = static_field(init=False)

    def __init__(self, metrics: MetricTree, *, name: str | None = None, dtype: DTypeLike | None = None):
        vars(self).update(name=name, dtype=dtype)
        super().__post_init__()
        given = flatten_named(metrics, metric_name)
        vars(self).update(
            names=tuple(named.name for named in given),
            keys=tuple(named.keys for named in given),
            own_names=tuple(named.output_name for named in given),
            metrics=tuple(
                as_metric(thing, None if name == metric_name(thing) else name) for name, _, thing, _ in given
            ),
        )

    def update(self, **kwargs: Any) -> Self:
        """Returns the metrics with a batch added.

        Args:
            **kwargs: the arguments of the metrics. A `mask` without `sample_weight` is used as weights.

        Raises:
            TypeError: if a required argument is missing.
        """
        if kwargs.get("sample_weight") is None and kwargs.get("mask") is not None:
            kwargs["sample_weight"] = jnp.asarray(kwargs["mask"]).astype(jnp.float32)
        new = []
        for name, keys, metric in zip(self.names, self.keys, self.metrics, strict=True):
            given = given_by_key(metric, keys, kwargs)
            try:
                new.append(updated(metric, given, f"the metric {name!r}"))
            except Exception as error:
                explain_by_key(error, metric, f"the metric {name!r}", keys, given, kwargs)
                raise
        return self.replace(metrics=tuple(new))

    def for_outputs(self, preds: PyTree) -> Self:
        """Returns the metrics with Keras's names for metrics that receive only the output of their key.

        Args:
            preds: the outputs, as arrays or `jax.ShapeDtypeStruct`.

        Example:
            >>> from elegy.metrics import MeanAbsoluteError
            >>> Metrics({"a": MeanAbsoluteError()}).for_outputs({"a": 0.0, "b": 0.0}).names
            ('a_mean_absolute_error',)
        """
        by_output = [takes_output(metric, keys, preds) for metric, keys in zip(self.metrics, self.keys, strict=True)]
        return self.replace(names=output_names(self.names, self.own_names, by_output)) if any(by_output) else self

    def index_into(self, **kwargs: Any) -> Self:
        """Returns the metrics with `index_into(**kwargs)` applied to each; their names stay.

        Args:
            **kwargs: as for `Metric.index_into`.

        Example:
            >>> from elegy.metrics import MAE, MSE
            >>> both = Metrics([MSE(), MAE()]).index_into(target="y", preds=("heads", 0))
            >>> both = both.update(target={"y": jnp.zeros(2)}, preds={"heads": [jnp.array([1.0, 3.0])]})
            >>> {name: value.item() for name, value in both.compute().items()}
            {'mean_square_error': 5.0, 'mean_absolute_error': 2.0}
        """
        return self.replace(metrics=tuple(metric.index_into(**kwargs) for metric in self.metrics))

    def rename_arguments(self, **kwargs: str) -> Self:
        """Returns the metrics with `rename_arguments(**kwargs)` applied to each; their names stay.

        Args:
            **kwargs: as for `Metric.rename_arguments`.
        """
        return self.replace(metrics=tuple(metric.rename_arguments(**kwargs) for metric in self.metrics))

    def slice(self, **kwargs: Any) -> Self:
        """The name of `index_into` in `jax_metrics` before 0.2.

        Args:
            **kwargs: as for `index_into`.
        """
        return self.index_into(**kwargs)

    def target_check(self, target: PyTree, preds: PyTree, sample_weight: ArrayLike | None = None) -> None:
        """Checks the values of a batch as each of the metrics does.

        Args:
            target: ground truth, on the host.
            preds: predictions, on the host.
            sample_weight: `(B,)` or finer; values of weight 0 are not checked.
        """
        for metric, keys in zip(self.metrics, self.keys, strict=True):
            given = given_by_key(metric, keys, {"target": target, "preds": preds, "sample_weight": sample_weight})
            check_target(metric, given["target"], given["preds"], given["sample_weight"])


class AuxMetrics(MetricSet):
    """Accumulates values that a module computes itself.

    A scalar is a mean weighted by examples; a `Metric` (a field's `batch_updates(...)`) is merged.

    Args:
        values: names of scalars, or a dict of scalars and metrics by name, whose values are ignored. `init` returns
            accumulators for other names.
        name: see `Metric`.
        dtype: the dtype of the scalars' state.

    Example:
        >>> metrics = AuxMetrics(["norm"]).update(aux_values={"norm": jnp.array(2.0)}, examples=3)
        >>> metrics.update(aux_values={"norm": jnp.array(6.0)}, examples=1).compute()["norm"].item()
        3.0
    """

    def __init__(
        self, values: Iterable[str] | Mapping[str, Any] = (), *, name: str | None = None, dtype: DTypeLike | None = None
    ):
        vars(self).update(name=name, dtype=dtype)
        super().__post_init__()
        kinds = values if isinstance(values, Mapping) else dict.fromkeys(values)
        vars(self).update(
            names=tuple(kinds),
            metrics=tuple(
                kind.reset() if isinstance(kind, Metric) else Mean(name=key, dtype=self.dtype)
                for key, kind in kinds.items()
            ),
        )

    def init(self, aux_values: Iterable[str] | Mapping[str, Any] = ()) -> AuxMetrics:
        """Returns accumulators for these names, without data.

        Args:
            aux_values: as `values` of the constructor; by default the accumulators are kept.

        Example:
            >>> list(AuxMetrics().init({"norm": jnp.zeros(())}).compute())
            ['norm']
        """
        return AuxMetrics(aux_values, name=self.name, dtype=self.dtype) if aux_values else self.reset()

    def update(
        self, aux_values: Mapping[str, Any], examples: ArrayLike | None = None, mask: ArrayLike | None = None, **_: Any
    ) -> Self:
        """Returns the metrics with a batch added; a metric without a value does not change.

        Args:
            aux_values: scalars and metrics by name.
            examples: the number of real examples, 1 by default.
            mask: `(B,)` bool, to count the examples if `examples` is None.
            **_: ignored.

        Raises:
            ValueError: if a name is unknown, or a value is neither a scalar nor a metric.
        """
        check_aux_values(aux_values, self.names, "metric")
        if examples is None and mask is not None:
            examples = jnp.sum(mask)

        def updated(name: str, metric: Metric) -> Metric:
            if name not in aux_values:
                return metric
            value = aux_values[name]
            if isinstance(value, Metric):
                return metric.merge(value)
            return metric.update(values=scalar_aux(name, value, "metric"), sample_weight=examples)

        return self.replace(
            metrics=tuple(updated(name, metric) for name, metric in zip(self.names, self.metrics, strict=True))
        )


__all__ = ["AuxMetrics", "MetricSet", "Metrics"]
