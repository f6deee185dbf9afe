"""Accumulates losses over batches: numerators and denominators, which are divided at the end."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from elegy.losses.by_key import explain_by_key, given_by_key, takes_output
from elegy.losses.function import as_loss
from elegy.losses.loss import Loss
from elegy.losses.numbers import number_where, whole_sum
from elegy.losses.reduction import Reduction, reduce_terms, safe_divide
from elegy.losses.target_check import check_target
from elegy.metrics.metric import Metric
from elegy.metrics.named import LossTree, flatten_named, output_names
from elegy.metrics.sums import CompensatedSum, add_trees, sum_leading_axis
from elegy.names import name_of
from elegy.pytree import field, static_field
from elegy.types import PyTree


class LossTerms(Metric):
    """The state of several losses: a numerator for each, and a denominator (None for a sum)."""

    names: tuple[str, ...] = static_field(init=False)
    numerators: tuple[CompensatedSum, ...] = field(init=False)
    denominators: tuple[CompensatedSum | None, ...] = field(init=False)

    def reset(self) -> Self:
        """Returns the losses without data."""
        # One array for each: a donated buffer must not occur twice in the state.
        numerators, denominators = jax.tree.map(jnp.zeros_like, (self.numerators, self.denominators))
        return self.replace(numerators=numerators, denominators=denominators)

    def _zero(self) -> CompensatedSum:
        return CompensatedSum.zeros((), self.dtype)

    @abc.abstractmethod
    def batch_terms(self, **kwargs: Any) -> list[tuple[jax.Array, jax.Array | None]]:
        """The numerator and the denominator of each loss on a batch."""

    def batch_updates(self, **kwargs: Any) -> Self:
        """Returns the losses of one batch alone.

        Args:
            **kwargs: the arguments of `update`.
        """
        numerators, denominators = zip(*self.batch_terms(**kwargs), strict=True) if self.names else ((), ())
        return self.replace(
            numerators=tuple(CompensatedSum.of(new, self.dtype) for new in numerators),
            denominators=tuple(None if new is None else CompensatedSum.of(new, self.dtype) for new in denominators),
        )

    def scale(self, factor: ArrayLike) -> Self:
        """Returns the losses multiplied by a factor.

        Args:
            factor: a scalar.
        """
        return self.replace(numerators=tuple(n.scale(factor) for n in self.numerators))

    def merge(self, other: Self) -> Self:
        """Returns the losses of both data.

        Args:
            other: terms of the same losses.
        """
        numerators, denominators = add_trees(
            (self.numerators, self.denominators), (other.numerators, other.denominators)
        )
        return self.replace(numerators=numerators, denominators=denominators)

    def aggregate(self) -> Self:
        """Returns the losses of all replicas' data, from leaves with a leading axis of replicas."""
        numerators, denominators = sum_leading_axis((self.numerators, self.denominators))
        return self.replace(numerators=numerators, denominators=denominators)

    def compute(self) -> dict[str, jax.Array]:
        """Returns each loss over all data, as scalars by name; 0 for a loss without data.

        All are NaN if none had data, because 0 would look like a perfect loss.
        """
        weights = [d.value for d in self.denominators if d is not None]
        values = {
            name: n.value if d is None else safe_divide(n.value, d.value)
            for name, n, d in zip(self.names, self.numerators, self.denominators, strict=True)
        }
        if not weights or len(weights) < len(values):
            return values
        nothing = functools.reduce(lax.bitwise_and, (lax.eq(one, np.zeros((), one.dtype)) for one in weights))
        return {name: number_where(nothing, jnp.nan, value) for name, value in values.items()}

    def compute_logs(self) -> dict[str, jax.Array]:
        """Returns the same as `compute`."""
        return self.compute()

    def total_loss(self, sum_over_replicas: Callable[[jax.Array], jax.Array] = lambda x: x) -> jax.Array:
        """Returns this replica's part of the sum of the losses, to be differentiated.

        The sum over replicas of the gradients of these parts is the gradient of the loss over all data: the
        denominators are summed over replicas before differentiation.

        Args:
            sum_over_replicas: sums an array over the replicas, `lambda x: jax.lax.psum(x, axis)` for example.

        Returns:
            A scalar; 0 without examples.

        Example:
            >>> from elegy.losses import MeanSquaredError
            >>> losses = Losses(MeanSquaredError()).batch_updates(target=jnp.zeros(2), preds=jnp.ones(2))
            >>> losses.total_loss().item(), losses.total_loss(lambda x: 2 * x).item()
            (1.0, 0.5)
        """
        divided = [(n.value, d.value) for n, d in zip(self.numerators, self.denominators, strict=True) if d is not None]
        parts = [n.value for n, d in zip(self.numerators, self.denominators, strict=True) if d is None]
        if divided:
            numerators, denominators = map(lax.stack, zip(*divided, strict=True))
            # One collective for all denominators, which do not depend on the parameters.
            weights = sum_over_replicas(jax.lax.stop_gradient(denominators))
            parts.insert(0, whole_sum(safe_divide(numerators, weights)))
        return functools.reduce(lax.add, parts) if parts else jnp.zeros((), self.dtype)

    def sum_denominators(self, sum_over_replicas: Callable[[Any], Any]) -> Self:
        """Returns the losses with the denominators of all replicas.

        Args:
            sum_over_replicas: sums a tree of arrays over the replicas.
        """
        return self.replace(denominators=sum_over_replicas(self.denominators))

    def over(self, whole: Self) -> Self:
        """Returns the losses with the denominators of others.

        The `total_loss` of what comes back is the part that this data has in the loss over all of it.

        Args:
            whole: the same losses over all of the data.

        Example:
            >>> from elegy.losses import MeanSquaredError
            >>> losses = Losses(MeanSquaredError())
            >>> one, other = (losses.batch_updates(target=jnp.zeros(n), preds=jnp.full(n, 2.0)) for n in (1, 3))
            >>> one.over(one.merge(other)).total_loss().item()
            1.0
        """
        return self.replace(denominators=whole.denominators)

    def loss_and_update(self, **kwargs: Any) -> tuple[jax.Array, Self]:
        """Returns the loss of a batch, and the losses with the batch merged into them.

        Args:
            **kwargs: the arguments of `update`.
        """
        updates = self.batch_updates(**kwargs)
        return updates.total_loss(), self.merge(updates)


class Losses(LossTerms):
    """Accumulates losses over batches.

    Args:
        losses: a loss, function or regularizer, or a list or dict of them. If the outputs are a dict with the same key,
            a loss receives the output, the target and the sample weights of its key.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        TypeError: if an entry is not a loss.
        ValueError: if a loss has `Reduction.NONE`.

    Example:
        >>> from elegy.losses import MeanAbsoluteError, MeanSquaredError
        >>> losses = Losses([MeanSquaredError(), MeanAbsoluteError()])
        >>> losses = losses.update(target=jnp.zeros(1), preds=jnp.array([3.0]))
        >>> losses = losses.update(target=jnp.zeros(2), preds=jnp.zeros(2))
        >>> {name: value.item() for name, value in losses.compute().items()}
        {'mean_squared_error': 3.0, 'mean_absolute_error': 1.0}
    """

    losses: tuple[Loss, ...] = field(init=False)
    keys: tuple[tuple[str, ...], ...] = static_field(init=False)
    own_names: tuple[str, ...] = static_field(init=False)

    def __init__(self, losses: LossTree, *, name: str | None = None, dtype: DTypeLike | None = None):
        given = flatten_named(losses, name_of, "loss")
        resolved = tuple(as_loss(named.thing, named.name) for named in given)
        for loss in resolved:
            loss.check_reduction()
        vars(self).update(name=name, dtype=dtype)
        super().__post_init__()
        vars(self).update(
            names=tuple(named.name for named in given),
            keys=tuple(named.keys for named in given),
            own_names=tuple(named.output_name for named in given),
            losses=resolved,
            numerators=tuple(self._zero() for _ in given),
            denominators=tuple(None if loss.reduction is Reduction.SUM else self._zero() for loss in resolved),
        )

    def update(self, **kwargs: Any) -> Self:
        """Returns the losses with a batch added.

        Args:
            **kwargs: the arguments of the losses, and `sample_weight`, `mask` and `examples` (see `Loss.terms`).

        Raises:
            TypeError: if a required argument is missing.
        """
        return self.merge(self.batch_updates(**kwargs))

    def batch_terms(self, **kwargs: Any) -> list[tuple[jax.Array, jax.Array | None]]:
        """The numerator and the denominator of each loss on a batch.

        Args:
            **kwargs: the arguments of `update`.
        """
        terms = []
        for name, keys, loss in zip(self.names, self.keys, self.losses, strict=True):
            given = given_by_key(loss, keys, kwargs)
            try:
                terms.append(loss.terms(**given))
            except Exception as error:
                explain_by_key(error, loss, f"the loss {name!r}", keys, given, kwargs)
                raise
        return terms

    def for_outputs(self, preds: PyTree) -> Self:
        """Returns the losses with Keras's names for losses that receive only the output of their key.

        Args:
            preds: the outputs, as arrays or `jax.ShapeDtypeStruct`.

        Example:
            >>> from elegy.losses import MeanSquaredError
            >>> Losses({"a": MeanSquaredError(), "b": MeanSquaredError()}).for_outputs({"a": 0.0, "b": 0.0}).names
            ('a_loss', 'b_loss')
        """
        by_output = [takes_output(loss, keys, preds) for loss, keys in zip(self.losses, self.keys, strict=True)]
        return self.replace(names=output_names(self.names, self.own_names, by_output)) if any(by_output) else self

    def aggregate(self) -> Self:
        """Returns the losses of all replicas' data, from leaves with a leading axis of replicas."""
        # Arrays in the fields of a loss are the same on every replica.
        return super().aggregate().replace(losses=jax.tree.map(lambda leaf: leaf[0], self.losses))

    def index_into(self, **kwargs: Any) -> Self:
        """Returns the losses with `index_into(**kwargs)` applied to each; their names stay.

        Args:
            **kwargs: as for `Loss.index_into`.

        Example:
            >>> from elegy.losses import MeanAbsoluteError, MeanSquaredError
            >>> both = Losses([MeanSquaredError(), MeanAbsoluteError()]).index_into(target="y", preds=("heads", 0))
            >>> both = both.update(target={"y": jnp.zeros(2)}, preds={"heads": [jnp.array([1.0, 3.0])]})
            >>> {name: value.item() for name, value in both.compute().items()}
            {'mean_squared_error': 5.0, 'mean_absolute_error': 2.0}
        """
        return self.replace(losses=tuple(loss.index_into(**kwargs) for loss in self.losses))

    def rename_arguments(self, **kwargs: str) -> Self:
        """Returns the losses with `rename_arguments(**kwargs)` applied to each; their names stay.

        Args:
            **kwargs: as for `Loss.rename_arguments`.
        """
        return self.replace(losses=tuple(loss.rename_arguments(**kwargs) for loss in self.losses))

    def slice(self, **kwargs: Any) -> Self:
        """The name of `index_into` in `jax_metrics` before 0.2.

        Args:
            **kwargs: as for `index_into`.
        """
        return self.index_into(**kwargs)

    def target_check(self, target: PyTree, preds: PyTree, sample_weight: ArrayLike | None = None) -> None:
        """Checks the values of a batch as each of the losses does.

        Args:
            target: ground truth, on the host.
            preds: predictions, on the host.
            sample_weight: `(B,)` or finer; values of weight 0 are not checked.
        """
        for loss, keys in zip(self.losses, self.keys, strict=True):
            given = given_by_key(loss, keys, {"target": target, "preds": preds, "sample_weight": sample_weight})
            check_target(loss, given["target"], given["preds"], given["sample_weight"])


class AuxLosses(LossTerms):
    """Accumulates losses that a module computes itself, as means weighted by examples.

    Args:
        names: the names of the losses; `init` returns accumulators for other names.
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> losses = AuxLosses(["kl"]).update(aux_values={"kl": jnp.array(2.0)}, examples=3)
        >>> losses.update(aux_values={"kl": jnp.array(6.0)}, examples=1).compute()["kl"].item()
        3.0
    """

    def __init__(self, names: Iterable[str] = (), *, name: str | None = None, dtype: DTypeLike | None = None):
        vars(self).update(name=name, dtype=dtype, names=tuple(names))
        super().__post_init__()
        numerators, denominators = (tuple(self._zero() for _ in self.names) for _ in range(2))
        vars(self).update(numerators=numerators, denominators=denominators)

    def init(self, aux_values: Iterable[str] | Mapping[str, Any] = ()) -> AuxLosses:
        """Returns the losses of these names, without data.

        Args:
            aux_values: names, or a dict of values by name, whose values are ignored; by default the names are kept.

        Example:
            >>> list(AuxLosses().init({"kl": jnp.zeros(())}).compute())
            ['kl']
        """
        return AuxLosses(tuple(aux_values) or self.names, name=self.name, dtype=self.dtype)

    def update(
        self, aux_values: Mapping[str, Any], examples: ArrayLike | None = None, mask: ArrayLike | None = None, **_: Any
    ) -> Self:
        """Returns the losses with a batch added; a loss without a value does not change.

        Args:
            aux_values: scalars by name.
            examples: the number of real examples, 1 by default.
            mask: `(B,)` bool, to count the examples if `examples` is None.
            **_: ignored.

        Raises:
            ValueError: if a name is unknown, or a value is not a scalar.
        """
        return self.merge(self.batch_updates(aux_values=aux_values, examples=examples, mask=mask))

    def batch_terms(self, **kwargs: Any) -> list[tuple[jax.Array, jax.Array | None]]:
        """The numerator and the denominator of each loss on a batch; both are 0 for a loss without a value.

        Args:
            **kwargs: the arguments of `update`.
        """
        aux_values = kwargs["aux_values"]
        check_aux_values(aux_values, self.names, "loss")
        zero = jnp.zeros((), self.dtype)
        return [
            reduce_terms(
                scalar_aux(name, aux_values[name], "loss"),
                Reduction.MEAN,
                mask=kwargs.get("mask"),
                examples=kwargs.get("examples"),
            )
            if name in aux_values
            else (zero, zero)
            for name in self.names
        ]


def check_aux_values(values: Mapping[str, Any], names: Iterable[str], kind: str) -> None:
    """Checks that every sown value has an accumulator.

    Raises:
        ValueError: if a name is unknown.

    Example:
        >>> check_aux_values({"kl": 1.0}, ["kl"], "loss")
    """
    unknown = [name for name in values if name not in set(names)]
    if unknown:
        raise ValueError(
            f"the module produced the {kind} values {unknown}, which have no accumulator; there are "
            f"{list(names)}. The names may not change from step to step; declare them with `init`."
        )


def scalar_aux(name: str, value: Any, kind: str) -> jax.Array:
    """Converts a sown value to an array.

    Raises:
        ValueError: if the value is not a scalar.

    Example:
        >>> scalar_aux("kl", 1.0, "loss").shape
        ()
    """
    value = jnp.asarray(value)
    if value.ndim:
        raise ValueError(f"the {kind} {name!r} that the module produced has shape {value.shape}; it must be a scalar.")
    return value
