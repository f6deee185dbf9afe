"""Whether the rows of a batch are computed independently of one another: seen by running, never known by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from elegy.data.batch import rows, unpack
from elegy.distributed import gather
from elegy.flat import make_jaxpr
from elegy.jaxprs import bodies, equations
from elegy.module import high_level
from elegy.module.context import StepContext
from elegy.module.levels import level_of
from elegy.module.logs import LogBook
from elegy.strategies import Strategy
from elegy.strategies.strategy import struct_of
from elegy.strategies.tuning import compiler_options
from elegy.types import Array, Batch, PyTree

logger = logging.getLogger("elegy")

Phase = Literal["train", "test", "pred"]

REAL, ROWS = 2, 11
"""Real rows and all rows of a padded batch of the probe, on one replica."""

SAMPLE = 2**16
"""Entries of one output that are compared at most."""

NOISE = 0.01

ROUNDING, LOOSE = 1e-5, 3e-2
"""How far results for two numbers of rows may differ, by the largest entry. Sums are taken in another order, in 16 bits
perhaps; but if the number of rows is a constant of the program, a small difference may come from it."""


class _Unseen(Exception):
    """Why nothing can be seen."""


class _Results(NamedTuple):
    """What a run computed from its real rows: outputs, the raw updates of losses and metrics, and their values."""

    outputs: list[Any]
    updates: list[Any]
    values: list[Any]


def rows_are_independent(state: Any, phase: Phase, batch: Batch, strategy: Strategy) -> bool:
    """Whether a short batch may be filled up with rows of weight 0, because padding leaves no trace in its results.

    The forward pass of the phase, its losses and metrics run on a few real rows of a batch:

    - beside two kinds of padding, at the end and at the beginning. The results must be the same bits: what looks at
      other rows (`x - x.mean(0)`, a softmax or a sort over examples, a contrastive loss) sees the padding.
    - without padding. The results must be the same up to rounding: what depends on the number of rows (a division by
      `x.shape[0]`, a metric that counts rows) differs.

    A level below the high one, a call that changes the state (batch statistics) or reports losses and metrics of its
    own, a loss that is a scalar, and a metric without weights are refused while tracing. Where nothing can be seen (the
    probe fails, its rows are all the same, it would print) the answer is False, and the reason is logged for debugging.

    Why this earns its place: where rows do not divide over the devices of a mesh, padding keeps every device from
    computing the whole batch; in training it saves the compilation of the short batch, for two of the forward pass.

    What it cannot see: dependence that these rows never meet (a branch for rare values, the capacity of a router that
    is not reached), and that of gradients alone (a custom gradient that looks across rows).

    Args:
        state: the state as the strategy places it; it stays as it is. Parameters that are zero or constant could hide
            what they multiply: the probe runs with a little noise on them.
        phase: the phase.
        batch: a batch of arrays as the phase's step takes it, the same in every process.
        strategy: places the rows.
    """
    try:
        reason = _dependence(state, phase, batch, strategy)
    except _Unseen as error:
        reason = str(error)
    except Exception as error:  # the user's function, or JAX, for a number of rows that they do not take
        reason = f"a probe of {phase} steps failed: {type(error).__name__}: {error}"
    if reason is not None:
        logger.debug("%s: short batches keep their shape: %s", phase, reason)
    if strategy.processes > 1:
        return not gather(np.bool_(reason is not None)).any()
    return reason is None


def _dependence(state: Any, phase: Phase, batch: Batch, strategy: Strategy) -> str | None:
    """Why padding may leave a trace, and None if it does not."""
    if level_of(type(state), phase) != "high" or not high_level.runs_apply(state):
        return "the step is the user's own"
    replicas = strategy.replicas
    real = replicas * -(-REAL // replicas)
    count = max(2 * real, replicas * -(-ROWS // replicas))
    index, last = np.arange(count), count - real
    first = np.where(index < real, index, real - 1)
    orders = {
        0: (first, index, np.concatenate([index[:real], index[: real - 1 : -1]])),
        last: (index, np.where(index < last, count - 1, index)),
    }
    picked = _pick(batch, phase, count)
    if _same(*(jax.tree.leaves(_inputs(_take(picked, order), phase)) for order in orders[0][:2])):
        return "its rows are all the same"
    state = state.set_params(jax.tree.map(_with_noise, state.get_params()))
    long_trace, run = _compiled(state, phase, picked, real, strategy)
    padded = {}
    for start, some in orders.items():
        padded[start], *others = (run(_take(picked, order), start) for order in some)
        if any(np.isnan(leaf).any() for leaf in padded[start].outputs + padded[start].updates if _is_inexact(leaf)):
            return "NaN hides what it depends on"
        if not all(_same(jax.tree.leaves(padded[start]), jax.tree.leaves(other)) for other in others):
            return "results depend on rows that are padding"
    short = _take(picked, index[:real])
    short_trace, run = _compiled(state, phase, short, real, strategy)
    tolerance = LOOSE if _same_constants(long_trace, short_trace) else ROUNDING
    if not _near(padded[0], run(short, 0), tolerance):
        return "results depend on the number of rows"
    return None


def _pick(batch: Batch, phase: Phase, count: int) -> Batch:
    """Rows that count, spread over the batch, on the host; the same ones again if there are too few."""
    usable = np.arange(rows(batch))
    weights = [] if phase == "pred" else jax.tree.leaves(unpack(batch)[2])
    for weight in map(np.asarray, weights):
        usable = usable[(weight[usable] != 0).reshape(len(usable), -1).any(axis=1)]
    if len(usable) < 2:
        raise _Unseen("there is one row only")
    spread = np.linspace(0, len(usable) - 1, count).astype(int)
    return _take(batch, usable[spread if len(usable) >= count else np.arange(count) % len(usable)])


def _inputs(batch: Batch, phase: Phase) -> PyTree:
    return batch if phase == "pred" else unpack(batch)[0]


def _take(batch: Batch, index: np.ndarray) -> Batch:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], batch)


def _with_noise(leaf: Any) -> Any:
    """The parameter with noise where it is zero or constant, placed as it was."""
    if not _is_inexact(leaf) or not leaf.size:
        return leaf
    dull = [_is_dull(np.asarray(shard.data)) for shard in leaf.addressable_shards]
    if not any(one.sum() > 1 or one.size == 1 for one in dull):
        return leaf
    noisy = [jax.device_put(_noisy(np.asarray(shard.data)), shard.device) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, noisy)


def _is_dull(part: np.ndarray) -> np.ndarray:
    return (part == 0) | (part == part.flat[0])


def _noisy(part: np.ndarray) -> np.ndarray:
    noise = NOISE * np.sin(1.0 + np.arange(part.size)).reshape(part.shape)
    return np.where(_is_dull(part), part + noise.astype(part.dtype), part)


def _compiled(
    state: Any, phase: Phase, batch: Batch, real: int, strategy: Strategy
) -> tuple[Any, Callable[[Batch, int], _Results]]:
    """The forward pass, traced for the rows of a batch, and a function that runs it."""

    def forward(state: Any, batch: Batch, start: Array) -> _Results:
        return _forward(state, phase, batch, start, real)

    structs = jax.tree.map(struct_of, (state, batch, np.int32(0)))
    traced, out = make_jaxpr(forward, *structs)
    if traced.effects:
        raise _Unseen(f"it has effects ({traced.effects}), which a probe would have, too")
    leaves = jax.tree.leaves(state)
    platform = next(iter(leaves[0].devices())).platform
    call = jaxpr_as_fun(traced)

    def row_independence(*arrays: Any) -> list[Any]:  # its name in profiles
        return call(*arrays)

    run = jax.jit(row_independence, compiler_options=compiler_options(platform, once=True))

    def results(batch: Batch, start: int) -> _Results:
        placed = jax.tree.leaves(strategy.place(batch, "batch"))
        return jax.tree.unflatten(
            jax.tree.structure(out), strategy.collect_outputs(run(*leaves, *placed, np.int32(start)))
        )

    return traced, results


def _forward(state: Any, phase: Phase, batch: Batch, start: Array, real: int) -> _Results:
    count = rows(batch)
    # The numbers that this generator draws for a row do not depend on how many rows follow.
    key = jax.random.key(0, impl="threefry2x32")
    preds, after = high_level.apply(state, key, _inputs(batch, phase), phase == "train")
    if _moved(state, after):
        raise _Unseen("the call of the module changes its state")
    if phase == "pred" and not all(leaf.shape[:1] == (count,) for leaf in jax.tree.leaves(preds)):
        raise _Unseen("an output has not one row an example")
    if phase != "pred" and after._logs.pending:
        raise _Unseen("the module reports losses or metrics of its own")
    outputs = [_sample(leaf, count, start, real) for leaf in map(jnp.asarray, jax.tree.leaves(preds))]
    everything = state.losses_and_metrics
    if phase == "pred" or everything is None:
        return _Results(outputs, [], [])
    place = jnp.arange(count) - start
    context = StepContext.of(batch, (place >= 0) & (place < real))
    given = high_level.loss_arguments(after, preds, batch, context)
    if not all(part.maskable(count, **received) for part, received in everything.received(given)):
        raise _Unseen("a loss or a metric keeps no value for each row, or takes no weights")
    updates = everything.batch_updates(**given)
    return _Results(outputs, jax.tree.leaves(updates), jax.tree.leaves(updates.compute()))


def _moved(before: Any, after: Any) -> bool:
    """Whether a traced call changed a leaf of the state, apart from what it reported."""
    old, new = (jax.tree.leaves(state.replace(_logs=LogBook())) for state in (before, after))
    return len(old) != len(new) or any(a is not b for a, b in zip(old, new, strict=True))


def _sample(leaf: jax.Array, count: int, start: Array, real: int) -> jax.Array:
    """Entries of the real rows of an output."""
    if leaf.shape[:1] == (count,):
        leaf = jax.lax.dynamic_slice_in_dim(leaf, start, real)
    return leaf.reshape(-1)[:: leaf.size // SAMPLE + 1]


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _same(some: list[Any], others: list[Any]) -> bool:
    """Whether arrays are the same bits."""
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(some, others, strict=True))


def _same_constants(some: Any, others: Any) -> bool:
    """Whether two traces are written with the same constants."""
    pairs = list(map(_constants, (some, others)))
    return len(pairs[0]) == len(pairs[1]) and all(a is b or np.array_equal(a, b) for a, b in zip(*pairs, strict=True))


def _constants(traced: Any) -> list[Any]:
    found = [*getattr(traced, "consts", ())]
    for equation in equations(traced):
        found += [variable.val for variable in equation.invars if hasattr(variable, "val")]
        found += [value for body in bodies(equation) for value in getattr(body, "consts", ())]
    return found


def _near(some: _Results, others: _Results, tolerance: float) -> bool:
    """Whether results are the same up to rounding, each array by its largest entry.

    Sums are kept with what rounding took from them, which is noise: for updates the largest of all counts too.
    """
    largest = max((np.abs(leaf).max(initial=0.0) for leaf in some.updates if _is_inexact(leaf)), default=0.0)
    return all(
        _close(a, b, tolerance, 1e-6 * float(largest) if part == "updates" else 0.0)
        for part in _Results._fields
        for a, b in zip(getattr(some, part), getattr(others, part), strict=True)
    )


def _close(a: np.ndarray, b: np.ndarray, tolerance: float, floor: float) -> bool:
    if not _is_inexact(a):
        return np.array_equal(a, b)
    wide = np.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else np.float64
    a, b = a.astype(wide), b.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return False
    largest = np.abs([a[finite], b[finite]]).max(initial=0.0)
    return bool(np.abs(a[finite] - b[finite]).max(initial=0.0) <= tolerance * largest + floor)
