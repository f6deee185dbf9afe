"""Decides by running a step with different padding if the rows of a batch are computed independently."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from elegy.data.batch import rows, unpack
from elegy.distributed import gather
from elegy.flat import make_jaxpr
from elegy.jaxprs import bodies, equations, keeps_rows, same_bits, same_program, same_values
from elegy.losses import Loss
from elegy.losses.arguments import call_with_named
from elegy.module import high_level
from elegy.module.context import StepContext
from elegy.module.levels import level_of
from elegy.module.logs import LogBook
from elegy.names import name_of
from elegy.strategies import Strategy
from elegy.strategies.strategy import struct_of
from elegy.strategies.tuning import quick_options
from elegy.types import Array, Batch, PyTree

logger = logging.getLogger("elegy")

Phase = Literal["train", "test", "pred"]

REAL, ROWS = 2, 11
"""Real rows and all rows of a padded batch of the probe, on one replica."""

SAMPLE = 2**16
"""The largest number of entries of one output that are compared."""

NOISE = 0.01

ROUNDING, LOOSE = 1e-5, 3e-2
"""The largest difference between results for two numbers of rows, relative to the largest entry. The order of sums
differs, perhaps in 16 bits. If the number of rows is a constant of the program, a small difference may depend on it."""


class _Dependent(Exception):
    """The results depend on padding, or the probe cannot find out; the message says why."""


class _Results(NamedTuple):
    """The results of a run for its real rows: outputs, and the updates of losses and metrics."""

    outputs: list[Any]
    updates: list[Any]


class _Traced(NamedTuple):
    """The forward pass for a number of rows."""

    jaxpr: Any
    out_tree: Any
    rows: int


class RowProbe:
    """Decides if a short batch may be padded with rows of weight 0, because padding does not change the results.

    The trace excludes steps below the high level, calls that change the state (batch statistics) or report losses and
    metrics of their own, losses that are scalars, metrics without weights, and effects such as printing. Then the
    forward pass of the phase runs on a few real rows of a batch, with the losses and metrics that are not known to
    compute rows independently:

    - with several kinds of padding, at the end and at the beginning. The results must be equal in all bits. Results
      that depend on other rows (`x - x.mean(0)`, a softmax or a sort over examples, a contrastive loss) differ.
    - without padding. The results must be equal up to rounding. Results that depend on the number of rows (a division
      by `x.shape[0]`, a metric that counts rows) differ. This run is skipped if two traces show that (`keeps_rows`) and
      the results do not depend on the position of the rows.

    If the probe cannot decide (it fails, its rows are all equal, results are NaN), the batch is not padded. The reason
    is logged at debug level.

    Padding is worth the probe: if rows do not divide over the devices of a mesh, it avoids that every device computes
    the whole batch. Elsewhere it saves the compilation of the short batch, at the cost of two compilations of the
    forward pass without optimisation.

    The probe does not detect dependence that its rows do not trigger (a branch for rare values, the capacity of a
    router), or dependence of gradients alone (a custom gradient across rows).

    Args:
        state: the structure of the state, as `jax.ShapeDtypeStruct`.
        phase: the phase.
        batch: a batch of arrays for the phase's step, the same in every process.
        strategy: places the rows.
        others: probes of the same strategy. If one of them traced the same program (a module without dropout, in
            training and in evaluation), its result is used.

    Attributes:
        independent: True if padding does not change the results; None until the probe ran.
    """

    def __init__(self, state: Any, phase: Phase, batch: Batch, strategy: Strategy, others: Iterable[RowProbe] = ()):
        self._phase: Phase = phase
        self._strategy = strategy
        self.independent: bool | None = None
        self._traces: tuple[_Traced, ...] = ()
        self._twin: RowProbe | None = None
        self._lock = threading.Lock()  # several threads may evaluate and predict
        with self._noting():
            self._prepare(state.replace(_logs=LogBook()), batch)
            self._twin = next((other for other in others if other.same_program(self)), None)

    def same_program(self, other: RowProbe) -> bool:
        """True if both probes traced the same program, so that one result is enough."""
        pairs = list(zip(self._traces, other._traces, strict=False))
        return bool(pairs) and all(same_program(mine.jaxpr, theirs.jaxpr) for mine, theirs in pairs)

    def rows_are_independent(self, state: Callable[[], Any]) -> bool:
        """Runs the probe, once.

        Args:
            state: returns the placed state, which is not changed.
        """
        with self._lock:
            if self.independent is None and self._twin is not None:
                self.independent = self._twin.rows_are_independent(state)
            if self.independent is None:
                placed = state().replace(_logs=LogBook())
                with self._noting():
                    self._run(placed)
                    self.independent = True
                if self._strategy.processes > 1:
                    self.independent = bool(gather(np.bool_(self.independent)).all())
                del self._rows
            return bool(self.independent)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Stores and logs the reason if a batch must not be padded."""
        try:
            yield
            return
        except _Dependent as error:
            reason = str(error)
        except Exception as error:  # of the user's code, or of JAX for a number of rows that it does not support
            reason = f"the probe failed: {type(error).__name__}: {error}"
        self.independent = False
        logger.debug("%s: short batches keep their shape: %s", self._phase, reason)

    def _prepare(self, state: Any, batch: Batch) -> None:
        """Chooses rows, and traces the forward pass for a padded and for a short batch."""
        if level_of(type(state), self._phase) != "high" or not high_level.runs_apply(state):
            raise _Dependent("the step is the user's own")
        replicas = self._strategy.replicas
        self._real = real = replicas * -(-REAL // replicas)
        count = max(2 * real, replicas * -(-ROWS // replicas))
        self._rows = _pick(batch, self._phase, count)
        self._traces = tuple(self._traced(state, np.arange(size)) for size in (count, real))
        index, last = np.arange(count), count - real
        real_rows, others = index[:real], index[real:]
        self._orders = {  # by the position of the first real row
            last: (np.append(others, real_rows), np.append(np.full(last, count - 1), real_rows)),
            0: (np.minimum(index, real - 1), index, np.append(real_rows, others[::-1])),
        }

    def _traced(self, state: Any, index: np.ndarray) -> _Traced:
        def forward(state: Any, batch: Batch, start: Array) -> _Results:
            return _forward(state, self._phase, batch, start, self._real)

        structs = jax.tree.map(struct_of, (state, _take(self._rows, index), np.int32(0)))
        jaxpr, out = make_jaxpr(forward, *structs)
        if jaxpr.effects:
            raise _Dependent(f"it has effects ({jaxpr.effects}), which a probe would have, too")
        return _Traced(jaxpr, jax.tree.structure(out), len(index))

    def _run(self, state: Any) -> None:
        repeated, mixed, _ = (jax.tree.leaves(_inputs(_take(self._rows, o), self._phase)) for o in self._orders[0])
        if _same(repeated, mixed):
            raise _Dependent("rows are all the same")
        leaves = jax.tree.leaves(state.set_params(jax.tree.map(_with_noise, state.get_params())))
        traced, traced_short = self._traces
        run = self._compiled(traced, leaves)
        places: list[list[Any]] = []
        for start, orders in self._orders.items():
            padded, *others = (jax.tree.leaves(run(order, start)) for order in orders)
            if any(np.isnan(leaf).any() for leaf in padded if _is_inexact(leaf)):
                raise _Dependent("NaN hides what it depends on")
            if not all(_same(padded, other) for other in others):
                raise _Dependent("results depend on rows that are padding")
            places.append(padded)
        if keeps_rows(traced.jaxpr, traced_short.jaxpr) and all(map(_close, *places)):
            return
        short = self._compiled(traced_short, leaves)(np.arange(self._real), 0)
        tolerance = LOOSE if _same_constants(traced.jaxpr, traced_short.jaxpr) else ROUNDING
        pairs = zip(places[-1], jax.tree.leaves(short), strict=True)
        if not all(_close(one, other, tolerance) for one, other in pairs):
            raise _Dependent("results depend on the number of rows")

    def _compiled(self, traced: _Traced, leaves: list[Any]) -> Callable[[np.ndarray, int], _Results]:
        call = jaxpr_as_fun(traced.jaxpr)

        def row_independence(*arrays: Any) -> _Results:  # the name in profiles
            outputs, updates = jax.tree.unflatten(traced.out_tree, call(*arrays))
            return _Results([_sample(leaf, traced.rows, arrays[-1], self._real) for leaf in outputs], updates)

        platform = next(iter(leaves[0].devices())).platform
        run = jax.jit(row_independence, compiler_options=quick_options(platform))

        def results(order: np.ndarray, start: int) -> _Results:
            placed = jax.tree.leaves(self._strategy.place(_take(self._rows, order), "batch"))
            return self._strategy.collect_outputs(run(*leaves, *placed, np.int32(start)))

        return results


def _pick(batch: Batch, phase: Phase, count: int) -> Batch:
    """Selects rows of nonzero weight, spread over the batch, on the host; repeats them if there are too few."""
    usable = np.arange(rows(batch))
    weights = [] if phase == "pred" else jax.tree.leaves(unpack(batch)[2])
    for weight in map(np.asarray, weights):
        usable = usable[(weight[usable] != 0).reshape(len(usable), -1).any(axis=1)]
    if len(usable) < 2:
        raise _Dependent("there is one row only")
    spread = np.linspace(0, len(usable) - 1, count).astype(int)
    return _take(batch, usable[spread if len(usable) >= count else np.arange(count) % len(usable)])


def _inputs(batch: Batch, phase: Phase) -> PyTree:
    return batch if phase == "pred" else unpack(batch)[0]


def _take(batch: Batch, index: np.ndarray) -> Batch:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], batch)


def _with_noise(leaf: Any) -> Any:
    """Adds noise to parts of a parameter that are zero or constant, and keeps its sharding."""
    if not _is_inexact(leaf) or not leaf.size:
        return leaf
    dull = _is_dull(np.asarray(leaf.addressable_shards[0].data))
    if dull.size > 1 and dull.sum() < 2:
        return leaf
    noisy = [jax.device_put(_noisy(np.asarray(shard.data)), shard.device) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, noisy)


def _is_dull(part: np.ndarray) -> np.ndarray:
    return (part == 0) | (part == part.flat[0])


def _noisy(part: np.ndarray) -> np.ndarray:
    noise = NOISE * np.sin(1.0 + np.arange(part.size)).reshape(part.shape)
    return np.where(_is_dull(part), part + noise.astype(part.dtype), part)


def _forward(state: Any, phase: Phase, batch: Batch, start: Array, real: int) -> _Results:
    count = rows(batch)
    # With this generator, the random numbers of a row do not depend on how many rows follow.
    key = jax.random.key(0, impl="threefry2x32")
    preds, after = high_level.apply(state, key, _inputs(batch, phase), phase == "train")
    if _moved(state, after):
        raise _Dependent("the call of the module changes its state")
    if phase == "pred" and not all(leaf.shape[:1] == (count,) for leaf in jax.tree.leaves(preds)):
        raise _Dependent("an output does not have one row for each example")
    if phase != "pred" and after._logs.pending:
        raise _Dependent("the module reports losses or metrics of its own")
    outputs = list(map(jnp.asarray, jax.tree.leaves(preds)))
    everything = state.losses_and_metrics
    if phase == "pred" or everything is None:
        return _Results(outputs, [])
    place = jnp.arange(count) - start
    context = StepContext.of(batch, (place >= 0) & (place < real))
    received = everything.received(high_level.loss_arguments(after, preds, batch, context))
    if not all(part.maskable(count, **given) for part, given in received):
        raise _Dependent("a loss or a metric keeps no value for each row, or takes no weights")
    by_row = all(leaf.shape[:1] == (count,) for leaf in jax.tree.leaves(preds))
    unknown = [(part, given) for part, given in received if not (by_row and part.rows_are_independent)]
    return _Results(outputs, [_updates(part, given) for part, given in unknown])


def _updates(part: Any, given: Mapping[str, Any]) -> list[Any]:
    """Returns the leaves of a loss's or a metric's state for one batch."""
    if isinstance(part, Loss):
        return jax.tree.leaves(part.terms(**given))
    return jax.tree.leaves(call_with_named(part.reset().update, given, f"the metric {name_of(part)!r}"))


def _moved(before: Any, after: Any) -> bool:
    """True if a traced call changed a leaf of the state, other than its logs."""
    old, new = (jax.tree.leaves(state.replace(_logs=LogBook())) for state in (before, after))
    return len(old) != len(new) or any(a is not b for a, b in zip(old, new, strict=True))


def _sample(leaf: jax.Array, count: int, start: Array, real: int) -> jax.Array:
    """Selects entries of the real rows of an output."""
    if leaf.shape[:1] == (count,):
        leaf = jax.lax.dynamic_slice_in_dim(leaf, start, real)
    return leaf.reshape(-1)[:: leaf.size // SAMPLE + 1]


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _same(some: list[Any], others: list[Any]) -> bool:
    """True if arrays are equal in all bits."""
    return all(map(same_bits, some, others))


def _same_constants(some: Any, others: Any) -> bool:
    """True if two traces have the same constants."""
    mine, theirs = map(_constants, (some, others))
    return len(mine) == len(theirs) and all(map(same_values, mine, theirs))


def _constants(traced: Any) -> list[Any]:
    found = [*getattr(traced, "consts", ())]
    for equation in equations(traced):
        found += [variable.val for variable in equation.invars if hasattr(variable, "val")]
        found += [value for body in bodies(equation) for value in getattr(body, "consts", ())]
    return found


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = ROUNDING) -> bool:
    """True if two arrays are equal up to rounding, relative to the largest entry."""
    if not _is_inexact(a):
        return np.array_equal(a, b)
    largest = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    wide = np.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else np.float64
    return np.allclose(a.astype(wide), b.astype(wide), rtol=0.0, atol=tolerance * float(largest))
