"""Precision: the dtypes of parameters, of the computation of a module, and of its outputs."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

from elegy.errors import StepError
from elegy.module.finite import FiniteCheck
from elegy.module.levels import level_of
from elegy.module.logs import LogBook
from elegy.pytree import Pytree, field, static_field
from elegy.types import Batch, Phase, PyTree

_SHORT = {
    "f32": "float32",
    "full": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "f64": "float64",
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_PARTS = {"p": "params", "c": "compute", "o": "output"}


def _dtype_name(value: Any) -> str:
    name = _SHORT.get(value, value) if isinstance(value, str) else getattr(jnp.dtype(value), "name", None)
    if name not in _DTYPES:
        raise ValueError(f"the dtype {value!r} of a precision is not known. Dtypes: {', '.join(_DTYPES)}.")
    if jax.dtypes.canonicalize_dtype(name) != jnp.dtype(name):
        raise ValueError("a precision with float64 needs `jax.config.update('jax_enable_x64', True)`.")
    return name


def _cast(tree: PyTree, dtype: str) -> PyTree:
    def cast(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == dtype:
            return leaf
        return jnp.asarray(leaf, dtype)

    return jax.tree.map(cast, tree)


def _like(new: Any, old: Any) -> Any:
    if new is old or not jnp.issubdtype(jnp.result_type(new), jnp.floating):
        return new
    return _cast(new, jnp.result_type(old).name) if jnp.issubdtype(jnp.result_type(old), jnp.floating) else new


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of a run: arrays are cast around `apply` or the managed step, without changes to the module.

    Only real floating arrays are cast; integers, complex arrays and labels are not. Losses, metrics, batch statistics,
    all other fields of the state, and the optimizer with its state are float32 under every policy. A dtype in the
    module (`nn.Dense(8, dtype=jnp.float32)`) takes precedence.

    Args:
        params: the dtype of stored parameters.
        compute: the dtype of parameters and inputs in the computation; that of `params` by default.
        output: the dtype of outputs for losses, metrics and `predict`; that of `compute` by default.
        loss_scale: with `compute` in float16, the initial factor of the loss; see `LossScale`.
        growth_interval: the number of consecutive finite steps after which the factor doubles.

    Raises:
        ValueError: if a dtype is not `bfloat16`, `float16`, `float32` or `float64`, or a number is below 1.

    Example:
        >>> Precision(compute="bfloat16", output="float32").cast_inputs([jnp.ones(2), jnp.arange(2)])
        [Array([1, 1], dtype=bfloat16), Array([0, 1], dtype=int32)]
    """

    params: Any = "float32"  # anything that names a dtype; its name once constructed
    compute: Any = None
    output: Any = None
    loss_scale: float = 2.0**15
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        """Normalizes the dtypes to their names."""
        params = _dtype_name(self.params)
        compute = params if self.compute is None else _dtype_name(self.compute)
        output = compute if self.output is None else _dtype_name(self.output)
        for name, value in (("params", params), ("compute", compute), ("output", output)):
            object.__setattr__(self, name, value)
        for name in ("loss_scale", "growth_interval"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
                raise ValueError(f"{name} of a precision must be a number of at least 1, not {value!r}.")

    @property
    def scales_loss(self) -> bool:
        """True if the loss is scaled, because float16 gradients below 6e-8 are zero."""
        return self.compute == "float16"

    def cast_inputs(self, inputs: PyTree) -> PyTree:
        """Casts inputs to the dtype of the computation."""
        return _cast(inputs, self.compute)

    def cast_params(self, params: PyTree) -> PyTree:
        """Casts parameters to the dtype in which they are stored."""
        return _cast(params, self.params)

    def cast_batch(self, batch: Batch) -> Batch:
        """Casts the inputs of a batch, but not labels and sample weights."""
        if type(batch) is not tuple:
            return self.cast_inputs(batch)
        return (self.cast_inputs(batch[0]), *batch[1:])

    def cast_outputs(self, outputs: PyTree) -> PyTree:
        """Casts outputs for losses, metrics and `predict`."""
        return _cast(outputs, self.output)

    def enter(self, module: Any) -> Any:
        """Returns the module with parameters in the dtype of the computation."""
        return module.set_params(_cast(module.get_params(), self.compute))

    def leave(self, state: Any, module: Any) -> Any:
        """Restores the parameters and the dtypes in the module that the user's code returned.

        Args:
            state: the module that the code returned.
            module: the argument of `enter`.
        """
        after = state.set_params(module.get_params()).replace(_logs=LogBook(), _step=None)
        before = module.replace(_logs=LogBook(), _step=None)
        structures: tuple[object, object] = jax.tree.structure(after), jax.tree.structure(before)
        if structures[0] == structures[1]:  # otherwise the caller reports what changed
            after = jax.tree.map(_like, after, before)
        return after.replace(_logs=state._logs, _step=state._step)


NAMES = {
    "float32": None,
    "bfloat16": Precision("bfloat16"),
    "mixed_bfloat16": Precision("float32", "bfloat16", "float32"),
    "mixed_float16": Precision("float32", "float16", "float32"),
}
"""Policies by name. With `"float32"`, the default, nothing is cast."""


def as_precision(value: Any) -> Precision | None:
    """Converts the argument of a user to a policy; None if nothing is cast.

    Args:
        value: a name; a `Precision`; a string as `jmp.get_policy` takes it, such as `"params=float32,compute=bfloat16"`
            or `"p=f32,c=bf16,o=f32"`; or a policy of `jmp`.

    Raises:
        TypeError: if the argument is anything else.
        ValueError: if a name, part or dtype is unknown; the message lists the known ones.

    Example:
        >>> as_precision("params=float32,compute=bfloat16,output=float32") == as_precision("mixed_bfloat16")
        True
    """
    if isinstance(value, Precision):
        return value
    if all(hasattr(value, f"{part}_dtype") for part in ("param", "compute", "output")):
        return Precision(value.param_dtype, value.compute_dtype, value.output_dtype)
    if not isinstance(value, str):
        raise TypeError(f"precision must be a name or an elegy.Precision, not {value!r}. {_known()}")
    if value in NAMES:
        return NAMES[value]
    if value in _THEIRS:
        raise ValueError(f"precision={value!r} is not known: write {_THEIRS[value]!r}.")
    parts: dict[str, Any] = {}
    for part in value.split(","):
        key, equals, dtype = (text.strip() for text in part.partition("="))
        key = _PARTS.get(key, key)
        if not equals or key not in _PARTS.values() or key in parts:
            raise ValueError(f"precision={value!r} is not known. {_known()}")
        parts[key] = dtype
    return Precision(**parts)


_THEIRS = {
    **dict.fromkeys(("16-mixed", "16", "fp16", "float16"), "mixed_float16"),
    **dict.fromkeys(("bf16-mixed", "bf16"), "mixed_bfloat16"),
    "bf16-true": "bfloat16",
    **dict.fromkeys(("32-true", "32", "fp32"), "float32"),
}
"""The names of other libraries, and ours."""


def _known() -> str:
    return (
        f"Names: {', '.join(map(repr, NAMES))}. Others are written by part, "
        "'params=float32,compute=bfloat16,output=float32'."
    )


def wide(tree: PyTree) -> PyTree:
    """Casts the 16-bit floating arrays of a tree to float32.

    Example:
        >>> wide([jnp.ones(1, jnp.bfloat16), jnp.arange(1)])
        [Array([1.], dtype=float32), Array([0], dtype=int32)]
    """
    return jax.tree.map(lambda leaf: _cast(leaf, "float32") if jnp.result_type(leaf).itemsize == 2 else leaf, tree)


def wide_params(module: Any) -> PyTree:
    """Returns the parameters in the dtypes of the optimizer: under a policy, 16-bit ones in float32."""
    return module.get_params() if module._precision is None else wide(module.get_params())


def as_kept(params: PyTree, like: PyTree) -> PyTree:
    """Casts parameters, or gradients, to the dtypes of others.

    Args:
        params: a tree of arrays.
        like: a tree of the same structure.
    """
    return jax.tree.map(lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), params, like)


def begin(state: Any, policy: Precision | None) -> Any:
    """Casts the parameters of a first state, and adds the loss scale if the policy has one.

    Args:
        state: a module with parameters.
        policy: the policy, or None.
    """
    if policy is None or not policy.scales_loss:
        scale = None
    elif state.dynamic_loss_scale is None:
        scale = LossScale.of(policy.loss_scale, int(policy.growth_interval))
    else:
        scale = state.dynamic_loss_scale
    state = state.replace(_precision=policy, dynamic_loss_scale=scale)
    return state if policy is None else state.set_params(policy.cast_params(state.get_params()))


def with_precision(module: Any, policy: Precision | None) -> Any:
    """Sets the policy of a module. A module with a first state is cast now, others when they get it.

    Args:
        module: a module.
        policy: the policy, or None.
    """
    if module.key is not None:
        return begin(module, policy)
    return module if module._precision == policy else module.replace(_precision=policy)


def managed_policy(module: Any, phase: Phase) -> Precision | None:
    """Returns the policy for a user's managed step; at the high level, arrays are cast around `apply` instead."""
    return module._precision if level_of(type(module), phase) == "managed" else None


def check_level(cls: type, phase: Phase, policy: Precision | None) -> None:
    """Checks that a policy can be applied.

    Raises:
        StepError: if the phase is at the core level.
    """
    if policy is not None and level_of(cls, phase) == "core":
        raise StepError(
            f"a precision casts around `apply` and managed steps, but {cls.__name__}.{phase}_step is a core-level "
            f"step, which Elegy only calls. Cast there (`jmp`), or write `managed_{phase}_step`."
        )


_LARGEST_SCALE = 2.0**64
"""A scale from which on it does not grow: losses up to 1e19 times the scale are finite in float32."""


class LossScale(Pytree):
    """The factor of the loss before differentiation, which keeps gradients in the range of float16.

    A step whose gradients are not finite is skipped, and the scale is halved, down to 1. After `growth_interval`
    consecutive finite steps it doubles, unless it is 2^64 or more. Otherwise the arithmetic is that of
    `jmp.DynamicLossScale`.

    Args:
        value: the scale, `float32[]`.
        finite_steps: the number of consecutive finite steps, `int32[]`.
        growth_interval: the number of finite steps after which the scale doubles.

    Example:
        >>> scale = LossScale.of(8.0, growth_interval=2)
        >>> scale.adjust(jnp.array(False)).value.item()
        4.0
        >>> scale.adjust(jnp.array(True)).adjust(jnp.array(True)).value.item()
        16.0
    """

    value: jax.Array = field()
    finite_steps: jax.Array = field()
    growth_interval: int = static_field(default=2000)

    @classmethod
    def of(cls, value: float, growth_interval: int) -> Self:
        """Returns the scale before the first step."""
        return cls(jnp.asarray(value, jnp.float32), jnp.zeros((), jnp.int32), growth_interval)

    def adjust(self, finite: jax.Array) -> Self:
        """Returns the scale after a step.

        Args:
            finite: True if the loss and the gradients of the step were finite, `bool[]`.
        """
        steps = jnp.where(finite, self.finite_steps + 1, 0)
        grows = steps >= self.growth_interval
        # If gradients stay zero, the scale would grow until a finite loss times the scale is infinite.
        doubled = jnp.where(self.value < _LARGEST_SCALE, 2 * self.value, self.value)
        value = jnp.where(finite, jnp.where(grows, doubled, self.value), jnp.maximum(self.value / 2, 1))
        return self.replace(value=value, finite_steps=jnp.where(grows, 0, steps))

    def unscale(self, tree: PyTree) -> PyTree:
        """Divides every array of a tree by the scale."""
        return jax.tree.map(lambda leaf: leaf / self.value.astype(leaf.dtype), tree)

    def reported(self, check: FiniteCheck) -> FiniteCheck:
        """Returns the check of a step without overflows of the scaled gradients, which the scale handles.

        Args:
            check: the check of the step's loss and gradients.
        """
        overflow = jnp.isfinite(check.loss) & (self.value > 1)
        return check.replace(bad=check.bad & ~overflow)
