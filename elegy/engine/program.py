"""Traces a step once for given shapes, and makes executables from the trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from elegy.data.batch import rows
from elegy.engine import costs
from elegy.engine.fusing import steps_per_execution
from elegy.engine.keys import key_impls, unwrap_keys, wrap_keys
from elegy.engine.member_turns import members_in_turn
from elegy.engine.packed_sums import PackedSums
from elegy.engine.small_arrays import NEXT, SmallArrays
from elegy.errors import StepError
from elegy.flat import make_jaxpr
from elegy.jaxprs import without_dead_code
from elegy.loading.chunks import bytes_of
from elegy.metrics import CompensatedSum
from elegy.module import managed, recipe
from elegy.module.applied import AppliedOutputs, is_array
from elegy.module.logs import LogBook, prepare, scalar_names
from elegy.module.step_values import PLAIN, StepOptions
from elegy.names import OTHER_CONTAINERS, differences, path_name, type_name
from elegy.strategies import Strategy
from elegy.strategies.strategy import Kind
from elegy.types import PyTree

CompiledPhase = Literal["train", "test", "pred"]

FINITE_CHECK = "finite_check"
"""The key of the finite check in an execution's logs."""

_SMALL = 4096
"""Bytes. Sums up to this size are not donated: each part of a `CompensatedSum` depends on all of its old parts, so XLA
copies it before it updates it in place, which takes a CPU longer than to allocate a new one."""

VALUES = "step_values"
"""The key of the step values in an execution's logs."""

_INDEX = jax.ShapeDtypeStruct((), jnp.int32)


class Program:
    """One phase of a module, traced for one structure of state and batch.

    The user's step is called once, to be traced. The executables for one batch and for several batches are made from
    this trace, so they compute the same values. Leaves of the state that a step returns unchanged (parameters, in
    evaluation) are not among the executables' results.

    Args:
        phase: the phase.
        strategy: how the step is compiled, and how replicas combine.
        state: the state's structure on one replica; log accumulators are added if missing.
        batch: the batch's structure, over all replicas.
        mask: the mask's structure, or `None` without padding.
        options: additions to a training step.

    Attributes:
        batch: the batch's structure, over all replicas.
        mask: the mask's structure, or `None`.
        state: the structure of the state with its log accumulators.
        changed: positions of the leaves that the step changes; those that are not donated come last.
        donated: how many of these are donated.
        packed: packs the others for single steps; None if they are not packed.
        log_names: for each logged scalar its name, dtype and place among the scalars of that dtype.
        value_names: likewise, for the requested step values.
        names: the names of the logged scalars.
        outputs: the structure of the results of the traced step, without the state.
        applied: the structure of the outputs of `apply` on one replica, in a step of training or evaluation; None if
            the default step did not run, or in microbatches.
        closed: the traced step, without equations that its results do not need.
        indexed: True if the step reads the index of the batch or of the epoch.
        small: the control vectors and masks of the program, on the devices.
        returns_control: True if executions return the control vector of the next one, which all members of a population
            share.
        donates: True if executions donate the leaves of the state that they change.
        batch_bytes: the size in bytes of a batch on one replica.
    """

    def __init__(
        self,
        phase: CompiledPhase,
        strategy: Strategy,
        state: Any,
        batch: PyTree,
        mask: Any,
        options: StepOptions = PLAIN,
    ):
        self.phase = phase
        self.strategy, self._options = strategy, options
        self.donates = phase == "train" and strategy.donates
        self.batch, self.mask = batch, mask
        batch, mask = (strategy.local_struct(given, "batch") for given in (batch, mask))
        self._rows = rows(batch)
        self.batch_bytes = bytes_of(batch)
        self._kernels: dict[tuple, Callable] = {}
        self._impls: dict[int, Any] = {}  # the generators of the random keys in the state
        self.applied: AppliedOutputs | None = None
        self.output_tree: Any = None  # the tree of a prediction's outputs, which are a list of arrays in the trace
        forward: Callable = self._forward if phase != "pred" else self._predict
        books = state._logs
        first = phase != "pred" and getattr(books, phase) is None
        if first:  # without accumulators: most steps log no scalars beside their losses and metrics
            state = state.replace(_logs=prepare(books, phase, ()))

        def step(state: Any, batch: PyTree, mask: Any, batch_idx: Any, epoch_idx: Any) -> tuple[Any, Any]:
            self._impls = key_impls(jax.tree.leaves(state))
            without = state.replace(_logs=state._logs.replace(**{phase: {}})) if first else state
            extra, after = forward(without, batch, mask, batch_idx, epoch_idx)
            pending = after._logs.pending
            if first and not getattr(state._logs, phase) and scalar_names(pending):
                return extra, after  # the accumulators are missing
            after = after.replace(_logs=state._logs.replace(pending=pending))
            if phase == "pred":
                return extra, jax.tree.map(_strong_like, recipe.unbound(after, state), state)
            self.applied = extra.applied
            out = managed.finish(after, phase, extra, strategy, options)
            module = recipe.unbound(out.module, state)
            check_unchanged(state, module, f"{type(state).__name__}'s {phase} step")
            packed: dict[str, Any] = {**_pack(out.logs, self.log_names)}
            if out.check is not None:
                packed[FINITE_CHECK] = out.check
            if options.values:
                packed[VALUES] = _pack(out.values, self.value_names)
            return packed, jax.tree.map(_strong_like, module, state)

        self.log_names: list[tuple[str, str, int]] = []
        self.value_names: list[tuple[str, str, int]] = []
        closed, result = self._trace(step, state, batch, mask, _INDEX, _INDEX)
        if first and (pending := result[1]._logs.pending):
            state = state.replace(_logs=prepare(books, phase, pending, state.losses_and_metrics))
            state = state.replace(_logs=jax.tree.map(abstract, state._logs))
            if state._recipe is None:  # otherwise, the results of a trace have the functions of that trace
                forward = _replayed(closed, result)
            closed, result = self._trace(step, state, batch, mask, _INDEX, _INDEX)
        self.state = state
        self.closed = without_dead_code(closed)
        if phase == "train" and strategy.maps_members and strategy.data_seeds is None:
            in_turn = members_in_turn(self.closed, state.get_params(), jax.default_backend())
            self.strategy = strategy.in_turn if in_turn else strategy
        self.outputs = result[0]
        self.names = frozenset(name for name, _, _ in self.log_names)
        n_state = len(jax.tree.leaves(state))
        n_extra = len(jax.tree.leaves(result[0]))
        inputs, outputs = self.closed.jaxpr.invars, self.closed.jaxpr.outvars[n_extra:]
        changed = [i for i in range(n_state) if outputs[i] is not inputs[i]]
        sums = _small_sums(state)
        self.changed = [*(i for i in changed if i not in sums), *(i for i in changed if i in sums)]
        self.donated = sum(i not in sums for i in changed)
        found = [inputs[i].aval for i in self.changed[self.donated :]]
        self.packed = PackedSums.of(found, strategy) if self.donates else None
        self.constant = [i for i in range(n_state) if outputs[i] is inputs[i]]
        read = [*(v for equation in self.closed.jaxpr.eqns for v in equation.invars), *self.closed.jaxpr.outvars]
        self.indexed = any(v is index for v in read for index in inputs[-2:])
        self.small = SmallArrays(strategy, self.indexed)
        self.returns_control = self.indexed and phase != "pred" and not strategy.maps_members

    def _forward(self, state: Any, batch: PyTree, mask: Any, b: Any, e: Any) -> tuple[managed.StepExtras, Any]:
        state = recipe.bound(state.replace(_logs=LogBook()))
        if self.phase == "train":
            return managed.forward_train(state, batch, b, e, mask, self.strategy, self._options)
        return managed.forward_test(state, batch, b, mask, self.strategy)

    def _predict(self, state: Any, batch: PyTree, mask: Any, b: Any, e: Any) -> tuple[list[Any], Any]:
        outputs, after = managed.pred(recipe.bound(state.replace(_logs=LogBook())), batch, b, self.strategy)
        found, self.output_tree = jax.tree_util.tree_flatten_with_path(outputs)
        for path, leaf in found:
            if not is_array(leaf):
                raise TypeError(
                    f"the output {path_name(path)} is {type_name(leaf)}, which a compiled step cannot return: outputs "
                    "are arrays in dicts, lists, tuples or classes that JAX knows as pytrees "
                    "(`jax.tree_util.register_pytree_node_class`)."
                )
        return [leaf for _, leaf in found], after

    def _trace(self, function: Callable, *args: Any) -> tuple[Any, Any]:
        return make_jaxpr(function, *args, axis_env=self.strategy.axis_env)

    def _step(self, changed: Sequence, constant: Sequence, batch: PyTree, mask: Any, b: Any, e: Any) -> tuple:
        state: list[Any] = [None] * (len(self.changed) + len(self.constant))
        for i, leaf in zip(self.changed, changed, strict=True):
            state[i] = leaf
        for i, leaf in zip(self.constant, constant, strict=True):
            state[i] = leaf
        flat = jaxpr_as_fun(self.closed)(*wrap_keys(state, self._impls), *jax.tree.leaves((batch, mask)), b, e)
        n_extra = len(flat) - len(state)
        extra = jax.tree.unflatten(jax.tree.structure(self.outputs), flat[:n_extra])
        after = unwrap_keys(flat[n_extra:], self._impls)
        return extra, [after[i] for i in self.changed]

    def single(self) -> Callable:
        """Returns an executable of one step.

        It is `(donated, sums, constant, batch, mask, control) -> (logs or outputs, changed)`: changed leaves of the
        state that may be donated, changed leaves that are not, constant leaves. Keys are passed as raw arrays. `sums`
        is a list, or the array of `packed`; in `changed`, the sums are as they were passed.
        `control` is `int32[3]`: epoch, index of the first batch, number of batches. Training and evaluation steps that
        read the indices return the next one with the logs, as `NEXT`.
        """
        if (found := self._kernels.get(("single",))) is not None:
            return found

        def kernel(donated: Any, sums: Any, constant: Any, batch: Any, mask: Any, control: Any) -> tuple[Any, Any]:
            packed = self.packed
            if packed is None or isinstance(sums, list):
                out, changed = self._step([*donated, *sums], constant, batch, mask, control[1], control[0])
            else:
                out, changed = self._step([*donated, *packed.cut(sums)], constant, batch, mask, control[1], control[0])
                changed = [*changed[: self.donated], packed.joined(changed[self.donated :])]
            return self._with_next(out, control, 1), changed

        return self._compiled(("single",), kernel, ("state", "small", "state", "batch", "batch", "whole"))

    @property
    def rowwise(self) -> bool:
        """True if every output of the traced step has one row for each example."""
        return all(leaf.ndim > 0 and leaf.shape[0] == self._rows for leaf in jax.tree.leaves(self.outputs))

    def used(self) -> frozenset[str]:
        """Returns the fields of the state of which the step reads or changes a leaf."""
        jaxpr, changed = self.closed.jaxpr, set(self.changed)
        read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(self.state)]
        return frozenset(
            str(path[0].name) for i, path in enumerate(paths) if i in changed or id(jaxpr.invars[i]) in read
        )

    @functools.cached_property
    def steps_per_execution(self) -> int:
        """The number of steps in one execution under `"auto"`."""
        return steps_per_execution(self.closed, jax.default_backend())

    @functools.cached_property
    def flops(self) -> float:
        """The floating-point operations of one step, over all devices; see `costs.flops`."""
        return costs.flops(self)

    def fused(self, capacity: int, *, resident: bool, count: int | None = None) -> Callable:
        """Returns an executable for up to `capacity` consecutive batches, with stacked logs or outputs.

        Its arguments are `(donated, sums, constant, data, index, mask, control)`. With `resident`, `data` is all of the
        data, and `index`, `int32[capacity, rows]`, has the rows of each batch; otherwise `data` is a stack of batches
        and `index` is `None`. The executable runs `count` batches, in a loop with a constant number of iterations;
        without `count`, any number of batches up to the capacity.
        """

        def kernel(
            donated: Any, sums: Any, constant: Any, data: Any, index: Any, mask: Any, control: Any
        ) -> tuple[Any, Any]:
            logs = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), self.outputs)

            def body(k: Any, carry: Any) -> Any:
                changed, logs = carry
                if resident:
                    batch = jax.tree.map(lambda a: _rows(a, _row(index, k)), data)
                else:
                    batch = jax.tree.map(lambda a: _row(a, k), data)
                this_mask = None if mask is None else _row(mask, k)
                row, changed = self._step(changed, constant, batch, this_mask, control[1] + k, control[0])
                return changed, jax.tree.map(lambda all, one: _put_row(all, k, one), logs, row)

            trips = control[2] if count is None else np.int32(count)
            changed, logs = jax.lax.fori_loop(np.int32(0), trips, body, ([*donated, *sums], logs))
            return self._with_next(logs, control, control[2]), changed

        kinds = ("state", "small", "state", "whole" if resident else "chunk", "chunk", "chunk", "whole")
        return self._compiled(("fused", capacity, resident, count), kernel, kinds)

    def _with_next(self, out: Any, control: Any, count: Any) -> Any:
        return {**out, NEXT: control.at[1].add(count)} if self.returns_control else out

    def _compiled(self, key: tuple, kernel: Callable, kinds: tuple) -> Callable:
        if key not in self._kernels:
            kernel.__name__ = f"{self.phase}_step" + ("s" if key[0] == "fused" else "")  # in profiles and messages
            outputs: Kind = "whole"
            if self.phase == "pred":
                outputs = "batch" if key[0] == "single" else "chunk"
            self._kernels[key] = self.strategy.compile(kernel, kinds, outputs=outputs, donate=self.donates)
        return self._kernels[key]


# Indices in a kernel are within bounds and not negative, so these functions save the checks in every step.


def _row(array: jax.Array, k: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, k, keepdims=False, allow_negative_indices=False)


def _rows(array: jax.Array, index: jax.Array) -> jax.Array:
    rows = jax.lax.GatherDimensionNumbers(
        offset_dims=tuple(range(1, array.ndim)), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    mode = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return jax.lax.gather(array, jax.lax.expand_dims(index, (1,)), rows, (1, *array.shape[1:]), mode=mode)


def _put_row(array: jax.Array, k: Any, row: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(array, row, k, 0, allow_negative_indices=False)


def _replayed(closed: Any, result: Any) -> Callable:
    """Returns the function of a trace, which computes the same without calling the user's code."""
    run, treedef = jaxpr_as_fun(closed), jax.tree.structure(result)
    return lambda *args: jax.tree.unflatten(treedef, run(*jax.tree.leaves(args)))


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a leaf, concrete or abstract."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _strong_like(leaf: Any, like: Any) -> Any:
    return jax.lax.convert_element_type(leaf, like.dtype) if jax.typeof(leaf).weak_type else leaf


def _pack(logs: dict[str, Any], names: list[tuple[str, str, int]]) -> dict[str, jax.Array]:
    """Packs all scalars of a dtype into one vector, so that an executable returns few buffers."""
    groups: dict[str, list[jax.Array]] = {}
    names.clear()
    for name, value in logs.items():
        value = jnp.asarray(value)
        if value.shape != ():
            continue
        group = groups.setdefault(str(value.dtype), [])
        names.append((name, str(value.dtype), len(group)))
        group.append(value)
    return {dtype: jnp.stack(group) for dtype, group in groups.items()}


def _small_sums(state: Any) -> set[int]:
    """The positions of the leaves of small sums."""

    def is_sum(node: Any) -> bool:
        return isinstance(node, CompensatedSum)

    nodes = jax.tree.leaves(state, is_leaf=is_sum)  # a sum has one leaf
    return {i for i, node in enumerate(nodes) if is_sum(node) and bytes_of(node) <= _SMALL}


def check_unchanged(before: Any, after: Any, who: str) -> None:
    """Checks that a step kept the structure, the shapes and the dtypes of the state.

    Raises:
        StepError: naming the paths that differ.
    """
    if type(after) is not type(before):
        raise StepError(f"{who} returned another class: {type(after).__name__} instead of {type(before).__name__}.")
    wrong = differences(before, after)
    if wrong == [OTHER_CONTAINERS]:
        wrong = [
            f"the structure or a static value of {name} changed"
            for name in type(before).__dataclass_fields__
            if differences(getattr(before, name), getattr(after, name))
            or (name in before._static_names and getattr(before, name) != getattr(after, name))
        ]
    if wrong:
        raise StepError(
            f"{who} changed the structure of the state: {'; '.join(wrong)}. A step must return a state of the same "
            "tree, shapes and dtypes; make every field its final shape in the init step."
        )
