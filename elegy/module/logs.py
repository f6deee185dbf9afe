"""The logs of a step: pending entries, and accumulators for the values of the epoch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp

from elegy.errors import StepError
from elegy.losses.numbers import default_float
from elegy.metrics import LossesAndMetrics, Metric
from elegy.metrics.sums import CompensatedSum
from elegy.names import unique_names
from elegy.pytree import Pytree, field, static_field

Reduce = Literal["mean", "sum", "min", "max", "last"]
REDUCTIONS = ("mean", "sum", "min", "max", "last")

_START = {"mean": 0.0, "sum": 0.0, "min": jnp.inf, "max": -jnp.inf, "last": 0.0}
_PAIRWISE: dict[str, Callable[[Any, Any], Any]] = {"min": jnp.minimum, "max": jnp.maximum}


class ScalarLog(Pytree):
    """The epoch's value of a logged scalar.

    Args:
        total: the running value, a float; for `"mean"` a sum weighted by examples, for `"last"` value times weight.
        weight: the sum of the weights.
        reduce: how values combine over steps; over replicas `"last"` is a mean.
    """

    total: CompensatedSum | jax.Array
    weight: CompensatedSum
    reduce: Reduce = static_field(default="mean")

    @classmethod
    def empty(cls, reduce: Reduce) -> ScalarLog:
        """Returns the accumulator before the first step."""
        return cls.of(jnp.asarray(_START[reduce], float), jnp.zeros((), float), reduce)

    @classmethod
    def of(cls, value: jax.Array, examples: jax.Array, reduce: Reduce) -> ScalarLog:
        """Returns the accumulator of one step's value on one replica, for `examples` examples."""
        dtype = default_float()
        total = jnp.asarray(value, dtype)
        total = total * examples if reduce in ("mean", "last") else total
        summed = CompensatedSum.of(total, dtype) if reduce in ("mean", "sum") else total
        return cls(summed, CompensatedSum.of(examples, dtype), reduce)

    def aggregate(self) -> Self:
        """Combines replicas, stacked on a leading axis."""
        total = self.total
        if isinstance(total, CompensatedSum):
            total = total.aggregate()
        else:
            over: Callable = {"min": jnp.min, "max": jnp.max}.get(self.reduce, jnp.sum)
            total = over(total, axis=0)
        return self.replace(total=total, weight=self.weight.aggregate())

    def merge(self, later: ScalarLog) -> Self:
        """Combines this with what came after it."""
        if self.reduce == "last":
            return jax.tree.map(lambda new, old: jnp.where(later.weight.value > 0, new, old), later, self)
        over = _PAIRWISE.get(self.reduce, operator.add)
        return self.replace(total=over(self.total, later.total), weight=self.weight + later.weight)

    def compute(self) -> jax.Array:
        """Returns the value, a scalar; NaN for a mean without examples."""
        total = self.total.value if isinstance(self.total, CompensatedSum) else self.total
        if self.reduce in ("mean", "last"):
            return total / jnp.where(self.weight.value > 0, self.weight.value, jnp.nan)
        return total

    def reset(self) -> ScalarLog:
        """The accumulator before the first step."""
        return type(self).empty(self.reduce)


class TermsLog(Pytree):
    """The epoch's value of the losses in a total: numerators and denominators are summed, then divided.

    Args:
        terms: the losses.
    """

    terms: LossesAndMetrics
    reduce: Literal["losses"] = static_field(default="losses")

    def aggregate(self) -> Self:
        """Combines replicas, stacked on a leading axis."""
        return self.replace(terms=self.terms.aggregate())

    def merge(self, later: TermsLog) -> Self:
        """Combines this with what came after it."""
        return self.replace(terms=self.terms.merge(later.terms))

    def compute(self) -> jax.Array:
        """Returns the sum of the losses, a scalar."""
        return self.terms.compute()["loss"]

    def reset(self) -> Self:
        """The accumulator before the first step."""
        return self.replace(terms=self.terms.reset())


class Entry(Pytree):
    """A value that a step reported with `log` or `add_loss`, or that the driver added.

    Args:
        value: a scalar, or the `ScalarLog` of several microbatches; the updates of a metric; for `"total"` also losses
            alone.
        name: the name in the logs.
        kind: `"scalar"`; `"loss"`, a scalar that is part of the total; `"metric"`; or `"total"`, a summand of the total
            that the driver adds if a step returned a loss that differs from the sum of its reported losses.
        reduce: how a scalar combines over steps; `"losses"` for losses.
        counted: True if the loss that the step returned includes this one.
    """

    value: Any
    name: str = static_field()
    kind: Literal["scalar", "loss", "metric", "total"] = static_field(default="scalar")
    reduce: Reduce | Literal["losses"] = static_field(default="mean")
    counted: bool = static_field(default=False)

    @property
    def adds(self) -> bool:
        """True if this is a loss that the driver must add to the loss that the step returned."""
        return self.kind == "loss" and not self.counted

    def updates(self, examples: jax.Array) -> Any:
        """Converts the entry to an object with `aggregate`."""
        if self.kind == "metric" or isinstance(self.value, ScalarLog):
            return self.value
        return TermsLog(self.value) if self.reduce == "losses" else ScalarLog.of(self.value, examples, self.reduce)


def empty_log(reduce: Reduce | Literal["losses"], losses: LossesAndMetrics | None) -> ScalarLog | TermsLog:
    """Returns the accumulator of an entry before the first step.

    Args:
        reduce: the entry's `reduce`.
        losses: the losses and metrics of the module; needed for `"losses"`.
    """
    if reduce != "losses":
        return ScalarLog.empty(reduce)
    assert losses is not None
    return TermsLog(losses_alone(losses).reset())


def losses_alone(losses: LossesAndMetrics) -> LossesAndMetrics:
    """Returns losses and metrics without the metrics."""
    return losses.replace(metrics=None, aux_metrics=None)


class LogBook(Pytree):
    """The logs of a module: the pending entries of the running step, and the epoch's accumulators for each phase."""

    pending: tuple[Entry, ...] = field(default=())
    train: dict[str, ScalarLog | TermsLog] | None = field(default=None)
    test: dict[str, ScalarLog | TermsLog] | None = field(default=None)

    def add(self, entry: Entry) -> Self:
        """Returns a book with one more pending entry."""
        return self.replace(pending=(*self.pending, entry))

    def reset(self) -> Self:
        """Returns a book with empty accumulators of the same structure."""
        zero = {
            phase: None if book is None else {name: log.reset() for name, log in book.items()}
            for phase, book in (("train", self.train), ("test", self.test))
        }
        return self.replace(pending=(), **zero)


def pending_losses(book: LogBook) -> list[LossesAndMetrics]:
    """Returns the updates of the losses that a step reported, without metrics."""
    updates = [entry.value for entry in book.pending if entry.kind == "metric"]
    found = [update for update in updates if isinstance(update, LossesAndMetrics)]
    return [losses_alone(update) for update in found if update.losses is not None]


def log_total(
    book: LogBook,
    loss: jax.Array,
    losses: list[LossesAndMetrics],
    factor: jax.Array,
    sum_over_replicas: Callable[[jax.Array], jax.Array],
) -> LogBook:
    """Logs the loss that a step returned, if it differs from the sum of the losses that it reported.

    The loss is split into `factor` times the reported losses, whose numerators and denominators are summed over the
    epoch, and the rest, which is averaged over the epoch by examples.

    Args:
        book: the book of the step.
        loss: the loss that the step returned on this replica.
        losses: the losses that the default step reported, if it ran.
        factor: the derivative of the loss with respect to the reported losses.
        sum_over_replicas: sums an array over the replicas.
    """
    entries = []
    if losses:
        terms = functools.reduce(lambda a, b: a.merge(b), losses)
        loss = loss - factor * sum_over_replicas(terms.total_loss(sum_over_replicas))
        entries.append(Entry(terms.scale_losses(factor), "loss", "total", "losses"))
    return book.replace(pending=(Entry(loss, "loss", "total"), *entries, *book.pending))


def scalar_names(pending: tuple[Entry, ...]) -> list[str]:
    """Returns the unique names of the pending scalars, in order."""
    return unique_names(e.name for e in pending if e.kind != "metric")


def prepare(book: LogBook, phase: str, pending: tuple[Entry, ...], losses: LossesAndMetrics | None = None) -> LogBook:
    """Makes the accumulators of a phase for the entries that its step reports.

    Args:
        book: the book of the module.
        phase: `"train"` or `"test"`.
        pending: the entries that one step of the phase reported, traced or abstract.
        losses: the losses and metrics of the module.

    Raises:
        StepError: if the phase already has accumulators with other names or reductions.
    """
    scalars = [e for e in pending if e.kind != "metric"]
    names = scalar_names(pending)
    wanted: dict[str, Reduce | Literal["losses"]] = {
        name: entry.reduce for name, entry in zip(names, scalars, strict=True)
    }
    have = getattr(book, phase)
    if have is None:
        return book.replace(**{phase: {name: empty_log(reduce, losses) for name, reduce in wanted.items()}})
    known = {name: log.reduce for name, log in have.items()}
    if known != wanted:
        raise logs_changed(phase, _listed(known), _listed(wanted))
    return book


def logs_changed(phase: str, before: Iterable[str], now: Iterable[str]) -> StepError:
    """Returns the error for a step that logs other names than earlier steps."""
    old, new = (", ".join(names) or "nothing" for names in (before, now))
    return StepError(
        f"the logs of the {phase} step changed: it used to log {old}, now it logs {new}. A step must log the same "
        "names every time; log a neutral value instead of leaving a name out."
    )


def _listed(names: Mapping[str, str]) -> list[str]:
    return [f"{name} ({reduce})" for name, reduce in names.items()]


class Drained(NamedTuple):
    """The logs of a step.

    Args:
        logs: the values of the epoch so far, by name, losses first.
        module: the state without pending entries.
        own: computes the values of the step alone, under the same names.
    """

    logs: dict[str, Any]
    module: Any
    own: Callable[[], dict[str, Any]]


def drain(
    module: Any,
    phase: str,
    examples: jax.Array,
    combine: Callable[[tuple], tuple],
    keep: Callable[[Any, Any], Any] = lambda after, before: after,
) -> Drained:
    """Moves the pending entries of a step into the accumulators.

    Args:
        module: an ElegyModule with pending entries.
        phase: `"train"` or `"test"`.
        examples: the number of examples of the step on this replica, `float32[]`.
        combine: the strategy's `combine_metrics`.
        keep: chooses between an accumulator after the step and before it.

    Raises:
        StepError: if the logs' names change, or a metric was logged under a field that is not a metric.
    """
    pending = module._logs.pending
    book = prepare(module._logs, phase, pending, module.losses_and_metrics).replace(pending=())
    updates = combine(tuple(entry.updates(examples) for entry in pending))
    accumulators = dict(getattr(book, phase))
    names = iter(scalar_names(pending))
    scalars: list[tuple[Any, Any]] = []  # each with its update
    fields: dict[str, Metric] = {}
    own: dict[str, Metric] = {}
    for entry, update in zip(pending, updates, strict=True):
        if entry.kind == "metric":
            of_module: Metric = getattr(module, entry.name)
            held = fields.get(entry.name, of_module)
            fields[entry.name] = keep(held.merge(update), held)
            own[entry.name] = own[entry.name].merge(update) if entry.name in own else update
        else:
            name = next(names)
            accumulators[name] = keep(accumulators[name].merge(update), accumulators[name])
            scalars.append((accumulators[name], update))
    return Drained(
        _values(pending, fields, [running for running, _ in scalars]),
        module.replace(_logs=book.replace(**{phase: accumulators}), **fields),
        lambda: _values(pending, own, [update for _, update in scalars]),
    )


def _values(pending: tuple[Entry, ...], metrics: Mapping[str, Metric], scalars: Iterable[Any]) -> dict[str, Any]:
    """The values of entries by unique names, losses first.

    Args:
        pending: the entries.
        metrics: the metrics by the names of their fields.
        scalars: the accumulators of the other entries, in order.
    """
    own_total = any(entry.kind == "total" for entry in pending)
    shown, others = dict(metrics), iter(scalars)
    total: list[jax.Array] = []
    losses: list[tuple[str, Any]] = []
    rest: list[tuple[str, Any]] = []
    for entry in pending:
        if entry.kind == "metric":
            metric = shown.pop(entry.name, None)  # a field that was logged twice has one value
            values = {} if metric is None else _metric_values(entry.name, metric)
            if isinstance(metric, LossesAndMetrics) and "loss" in values:
                value = values.pop("loss")
                total += [] if own_total else [value]
            rest.extend(values.items())
            continue
        value = next(others).compute()
        if entry.kind == "total" or (entry.kind == "loss" and not (own_total and entry.counted)):
            total.append(value)
        if entry.kind == "loss":
            losses.append((entry.name, value))
        elif entry.kind == "scalar":
            rest.append((entry.name, value))
    head = [("loss", sum(total[1:], total[0]))] if total else []
    rows = [*head, *(row for row in losses if row[0] != "loss"), *rest]
    return dict(zip(unique_names(name for name, _ in rows), (value for _, value in rows), strict=True))


def _metric_values(name: str, metric: Metric) -> dict[str, Any]:
    if isinstance(metric, LossesAndMetrics):
        return dict(metric.compute_logs())
    value = metric.compute()
    if isinstance(value, dict):
        return {f"{name}/{key}": v for key, v in value.items()}
    return {name: value}
