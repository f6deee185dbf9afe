"""The losses and metrics of a loop, as one metric."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from elegy.losses.by_key import check_weight_keys, given_by_key
from elegy.metrics.losses import AuxLosses, Losses, LossTerms
from elegy.metrics.metric import Metric
from elegy.metrics.metrics import AuxMetrics, Metrics, MetricSet
from elegy.metrics.named import LossTree, MetricTree
from elegy.names import unique_names
from elegy.regularizers import Regularizer
from elegy.types import PyTree

_PARTS: tuple[str, ...] = ("losses", "aux_losses", "metrics", "aux_metrics")


class LossesAndMetrics(Metric):
    """Losses, metrics, and the losses and metrics that a module computes itself.

    Args:
        losses: a loss, function or regularizer, a list or dict of them, or None.
        metrics: a metric, loss or function, a list or dict of them, or None.
        aux_losses: names of losses that the module computes.
        aux_metrics: names of values that the module computes, or a dict from names to scalars and metrics.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        TypeError: if an entry is not a loss or a metric.
        ValueError: if a loss has `Reduction.NONE`.

    Example:
        >>> from elegy.losses import MeanSquaredError
        >>> from elegy.metrics import MeanAbsoluteError
        >>> state = LossesAndMetrics(MeanSquaredError(), MeanAbsoluteError())
        >>> updates = state.batch_updates(target=jnp.zeros(2), preds=jnp.array([1.0, 3.0]))
        >>> updates.total_loss().item()
        5.0
        >>> {name: value.item() for name, value in state.merge(updates).compute_logs().items()}
        {'loss': 5.0, 'mean_squared_error': 5.0, 'mean_absolute_error': 2.0}
    """

    losses: Losses | None = None
    aux_losses: AuxLosses | None = None
    metrics: Metrics | None = None
    aux_metrics: AuxMetrics | None = None

    def __init__(
        self,
        losses: LossTree | Losses | None = None,
        metrics: MetricTree | Metrics | None = None,
        aux_losses: Iterable[str] | AuxLosses | None = None,
        aux_metrics: Iterable[str] | Mapping[str, Any] | AuxMetrics | None = None,
        *,
        name: str | None = None,
        dtype: DTypeLike | None = None,
    ):
        vars(self).update(name=name, dtype=dtype)
        super().__post_init__()
        given = (losses, aux_losses, metrics, aux_metrics)
        kinds: tuple[Any, ...] = (Losses, AuxLosses, Metrics, AuxMetrics)
        for part, value, kind in zip(_PARTS, given, kinds, strict=True):
            vars(self)[part] = _part(kind, value, self.dtype)

    def update(
        self,
        aux_losses: Mapping[str, Any] | None = None,
        aux_metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Returns the state with a batch added.

        Args:
            aux_losses: scalars that the module computed, by name.
            aux_metrics: scalars and metrics that the module computed, by name.
            **kwargs: `inputs`, `target`, `preds`, `sample_weight` (`(B,)` or finer, 0 where the mask is False),
                `mask` (`(B,)` bool), `parameters`, `batch_stats`, `examples` (the number of real examples).

        Raises:
            TypeError: if a required argument is missing.
            ValueError: if the name of an aux value is unknown.
        """
        arguments = self._arguments(aux_losses, aux_metrics, kwargs)
        return self._map(lambda name, part: part.update(**arguments[name]))

    def batch_updates(
        self,
        aux_losses: Mapping[str, Any] | None = None,
        aux_metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Returns the state of one batch alone.

        Args:
            aux_losses: as for `update`.
            aux_metrics: as for `update`.
            **kwargs: as for `update`.

        Raises:
            TypeError: as `update`.
            ValueError: as `update`.
        """
        arguments = self._arguments(aux_losses, aux_metrics, kwargs)
        return self._map(lambda name, part: part.batch_updates(**arguments[name]))

    def _arguments(
        self, aux_losses: Mapping[str, Any] | None, aux_metrics: Mapping[str, Any] | None, kwargs: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Returns the arguments for each part."""
        arguments = dict.fromkeys(_PARTS, kwargs)
        for part, aux in (("aux_losses", aux_losses), ("aux_metrics", aux_metrics)):
            if getattr(self, part) is None and aux:
                raise ValueError(
                    f"the module produced {part} {list(aux)}, which have no accumulator. "
                    "Declare them with `init(aux_losses=[...], aux_metrics=[...])`."
                )
            arguments[part] = {"aux_values": aux or {}, **kwargs}
        return arguments

    def _map(self, function: Callable[[str, Any], Any]) -> Self:
        parts = {name: getattr(self, name) for name in _PARTS}
        return self.replace(**{name: function(name, part) for name, part in parts.items() if part is not None})

    def reset(self) -> Self:
        """Returns the state without data."""
        return self._map(lambda _, part: part.reset())

    def aggregate(self) -> Self:
        """Returns the state of all replicas' data, from leaves with a leading axis of replicas."""
        return self._map(lambda _, part: part.aggregate())

    def merge(self, other: Self) -> Self:
        """Returns the state of both data.

        Args:
            other: the state of other data, usually `batch_updates(...)`.

        Raises:
            ValueError: if the two have different losses or metrics.
        """
        merged = {}
        for part in _PARTS:
            mine, others = getattr(self, part), getattr(other, part)
            names, other_names = (() if p is None else p.names for p in (mine, others))
            if names != other_names:
                raise ValueError(f"cannot merge: the {part} are {list(names)} here and {list(other_names)} there.")
            if mine is not None:
                merged[part] = mine.merge(others)
        return self.replace(**merged)

    def total_loss(self, sum_over_replicas: Callable[[jax.Array], jax.Array] = lambda x: x) -> jax.Array:
        """Returns this replica's part of the total loss, to be differentiated (see `LossTerms.total_loss`).

        Args:
            sum_over_replicas: sums an array over the replicas.

        Returns:
            A scalar: the sum of the losses, including those of the module. 0 without losses or examples.
        """
        kinds: list[LossTerms] = [part for part in (self.losses, self.aux_losses) if part is not None]
        parts = [part.total_loss(sum_over_replicas) for part in kinds]
        return sum(parts[1:], parts[0]) if parts else jnp.zeros((), self.dtype)

    def scale_losses(self, factor: ArrayLike) -> Self:
        """Returns the state with every loss multiplied by a factor.

        Args:
            factor: a scalar.
        """
        return self._map_losses(lambda _, losses: losses.scale(factor))

    def sum_denominators(self, sum_over_replicas: Callable[[Any], Any]) -> Self:
        """Returns the state with the losses' denominators of all replicas.

        Args:
            sum_over_replicas: sums a tree of arrays over the replicas.
        """
        return self._map_losses(lambda _, losses: losses.sum_denominators(sum_over_replicas))

    def over(self, whole: Self) -> Self:
        """Returns the state with the losses' denominators of another (see `LossTerms.over`).

        Args:
            whole: the state of all of the data.
        """
        return self._map_losses(lambda part, losses: losses.over(getattr(whole, part)))

    def _map_losses(self, function: Callable[[str, LossTerms], LossTerms]) -> Self:
        parts = {part: getattr(self, part) for part in ("losses", "aux_losses")}
        return self.replace(**{part: function(part, state) for part, state in parts.items() if state is not None})

    def loss_and_update(self, **kwargs: Any) -> tuple[jax.Array, Self]:
        """Returns the loss of a batch, and the state with the batch merged into it.

        Args:
            **kwargs: the arguments of `update`.
        """
        updates = self.batch_updates(**kwargs)
        return updates.total_loss(), self.merge(updates)

    def _entries(self, flat: bool) -> OrderedDict[str, Any]:
        losses: list[LossTerms] = [part for part in (self.losses, self.aux_losses) if part is not None]
        metrics: list[MetricSet] = [part for part in (self.metrics, self.aux_metrics) if part is not None]
        values = [entry for part in losses for entry in part.compute().items()]
        total = sum((value for _, value in values), jnp.zeros((), self.dtype))
        entries: list[tuple[str, Any]] = [("loss", total), *values]
        for metric_set in metrics:
            entries += metric_set.log_entries() if flat else metric_set.compute().items()
        named = OrderedDict(zip(unique_names(n for n, _ in entries), (v for _, v in entries), strict=True))
        if not losses:
            del named["loss"]
        return named

    def compute(self) -> OrderedDict[str, Any]:
        """Returns all values by name: `loss` (the total, if there are losses), each loss, each metric.

        `loss` is the total; names that repeat get `_1`, `_2`, ... in order, losses first. An `OrderedDict`, because
        `jax.jit` sorts the keys of a dict.
        """
        return self._entries(flat=False)

    def compute_logs(self) -> OrderedDict[str, Any]:
        """Returns `compute()` with the values of dicts under `name/key`."""
        return self._entries(flat=True)

    def with_aux(self, losses: Sequence[str] = (), metrics: Sequence[str] | Mapping[str, Any] = ()) -> LossesAndMetrics:
        """Returns the state with additional accumulators for values that a module computes itself.

        Args:
            losses: names of losses.
            metrics: names of scalars, or a dict of scalars and metrics by name, whose values are ignored.

        Example:
            >>> state = LossesAndMetrics().with_aux(losses=["kl"])
            >>> list(state.batch_updates(aux_losses={"kl": jnp.array(2.0)}).compute_logs())
            ['loss', 'kl']
        """
        return self.replace(
            aux_losses=_extend(self.aux_losses, AuxLosses(losses, dtype=self.dtype)),
            aux_metrics=_extend(self.aux_metrics, AuxMetrics(metrics, dtype=self.dtype)),
        )

    def init(
        self,
        aux_losses: Iterable[str] | Mapping[str, Any] = (),
        aux_metrics: Iterable[str] | Mapping[str, Any] = (),
    ) -> LossesAndMetrics:
        """Returns the state without data, with accumulators for values that a module computes itself.

        Args:
            aux_losses: names, or a dict of values by name, whose values are ignored.
            aux_metrics: names of scalars, or a dict of scalars and metrics by name, whose values are ignored.

        Example:
            >>> state = LossesAndMetrics(aux_losses=AuxLosses()).init(aux_losses={"kl": jnp.zeros(())})
            >>> list(state.batch_updates(aux_losses={"kl": jnp.array(2.0)}).compute_logs())
            ['loss', 'kl']
        """
        metrics = aux_metrics if isinstance(aux_metrics, Mapping) else tuple(aux_metrics)
        return self.with_aux(tuple(aux_losses), metrics).reset()

    def index_into(self, **kwargs: Any) -> Self:
        """Returns the state with `index_into(**kwargs)` applied to each loss and metric; their names stay.

        Args:
            **kwargs: as for `Metric.index_into`.
        """
        return self._map_given(lambda part: part.index_into(**kwargs))

    def rename_arguments(self, **kwargs: str) -> Self:
        """Returns the state with `rename_arguments(**kwargs)` applied to each loss and metric; their names stay.

        Args:
            **kwargs: as for `Metric.rename_arguments`.
        """
        return self._map_given(lambda part: part.rename_arguments(**kwargs))

    def received(self, available: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
        """Returns each loss and metric, with the values that it receives in a step.

        Args:
            available: the values by name.
        """
        groups = ((self.losses, "losses"), (self.metrics, "metrics"))
        return [
            (part, given_by_key(part, keys, available))
            for group, field in groups
            if group is not None
            for part, keys in zip(getattr(group, field), group.keys, strict=True)
        ]

    @property
    def has_keys(self) -> bool:
        """True if a loss or metric was given in a dict."""
        return any(any(part.keys) for part in (self.losses, self.metrics) if part is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the losses, then those of the metrics."""
        return sum((part.names for part in (self.losses, self.metrics) if part is not None), ())

    def for_outputs(self, preds: PyTree) -> Self:
        """Returns the state with Keras's names for losses and metrics that receive only the output of their key.

        A loss under the key `a` is named `a_loss`, and an accuracy `a_accuracy`.

        Args:
            preds: the outputs, as arrays or `jax.ShapeDtypeStruct`.
        """
        return self._map_given(lambda part: part.for_outputs(preds))

    def _map_given(self, function: Callable[[Any], Any]) -> Self:
        return self._map(lambda name, part: part if name.startswith("aux") else function(part))

    def check(self, target: PyTree = None, preds: PyTree = None, sample_weight: ArrayLike | None = None) -> None:
        """Checks the values of one batch, eagerly, for mistakes that shapes do not show.

        Args:
            target: ground truth, on the host.
            preds: predictions, on the host, or their `jax.ShapeDtypeStruct`.
            sample_weight: `(B,)` or finer, or a tree of such arrays; values of weight 0 are not checked.

        Raises:
            ValueError: if a value is invalid for a loss or metric, a weight is negative or not finite, or a dict of
                weights has a key that no output, loss or metric has.
            TypeError: if a dtype is invalid for a loss or metric.
        """
        for weight in map(np.asarray, jax.tree.leaves(sample_weight)):
            if not weight.size:
                continue
            lowest, highest = weight.min(), weight.max()
            if not (lowest >= 0 and highest < math.inf):  # a NaN is both the lowest and the highest
                raise ValueError(
                    f"sample_weight contains {highest if lowest >= 0 else lowest:.3g}: weights must be finite and not "
                    "negative, because a mean is divided by their sum. To ignore an example, give it the weight 0."
                )
        check_weight_keys(self._weights_received(sample_weight, preds), sample_weight, preds)
        self.target_check(target, preds, sample_weight)

    def _weights_received(self, sample_weight: Any, preds: PyTree) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Yields the keys of each loss and metric, and the sample weights that it receives."""
        for things, group in (("losses", self.losses), ("metrics", self.metrics)):
            for part, keys in () if group is None else zip(getattr(group, things), group.keys, strict=True):
                if not isinstance(part, Regularizer):  # which has no examples to weigh
                    given = given_by_key(part, keys, {"preds": preds, "sample_weight": sample_weight})
                    yield keys, given["sample_weight"]

    def target_check(self, target: PyTree, preds: PyTree, sample_weight: ArrayLike | None = None) -> None:
        """Checks the values of a batch as each of the losses and metrics does.

        Args:
            target: ground truth, on the host.
            preds: predictions, on the host.
            sample_weight: as for `check`.
        """
        for part in (self.losses, self.metrics):
            if part is not None:
                part.target_check(target, preds, sample_weight)


def _part(kind: Any, given: Any, dtype: Any) -> Any:
    """Converts the argument for one part of the state to its class; None if it is empty."""
    made = given if given is None or isinstance(given, kind) else kind(given, dtype=dtype)
    return made if made is not None and made.names else None


def _extend(old: Any, new: Any) -> Any:
    """Returns the accumulators of `old`, followed by those of `new` that `old` does not have."""
    if old is None:
        return new if new.names else None
    added = [i for i, name in enumerate(new.names) if name not in old.names]
    if not added:
        return old
    joined = {"names": old.names + tuple(new.names[i] for i in added)}
    states = ("numerators", "denominators") if isinstance(old, AuxLosses) else ("metrics",)
    for field in states:
        joined[field] = getattr(old, field) + tuple(getattr(new, field)[i] for i in added)
    return old.replace(**joined)
