"""Low-rank adapters for the parameters of any module."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from elegy.adapters.origin import Origin
from elegy.adapters.resolve import resolve
from elegy.errors import StepError
from elegy.flat import make_jaxpr
from elegy.integers import positive_int
from elegy.jaxprs import arguments_read
from elegy.lazy import is_instance_of
from elegy.module import ElegyModule, high_level
from elegy.module.context import LOCAL
from elegy.module.levels import level_of, overrides
from elegy.module.logs import LogBook
from elegy.names import array_name, path_name
from elegy.patterns import as_patterns, few, matching, no_match
from elegy.pytree import Static, field, static_field
from elegy.types import Phase, PyTree

_PHASES: tuple[Phase, ...] = ("init", "train", "test", "pred")
_RUN_FIELDS = ("key", "optimizer", "losses_and_metrics", "averaged_params", "dynamic_loss_scale", "_precision")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """A module whose parameters are frozen, with trained low-rank adapters (Hu et al., arXiv:2106.09685).

    It goes where a module goes, `Trainer(LoRA(module, "*/attention/*", rank=8), ...)`. A parameter `W` that matches
    a pattern is used as `W + alpha / rank * a @ b`. `a` is random and `b` is zero, so that the first step computes
    what the module computes. Only `a` and `b` have gradients and optimizer state.

    A parameter with more than two axes is used as the matrix of its first axis and the others, or of its last axis and
    the others, for which `a` and `b` have fewer elements: a convolution kernel `(height, width, in, out)` as
    `height * width * in` x `out`, an attention kernel `(features, heads, size)` as `features` x `heads * size`.
    Parameters with fewer than two axes, such as biases, have no adapter.

    Args:
        module: what a Trainer accepts: a module of any library, an `(init, apply)` pair, or an ElegyModule that
            implements `apply`, such as `trainer.state` of a trained one.
        patterns: a pattern of the paths of parameters, or several, as for `Trainer(freeze=...)`.
        rank: the number of columns of `a`.
        alpha: the scale of the update is `alpha / rank`; the default is `rank`.
        train: patterns of parameters that are trained as a whole, such as a new head, `"head/*"`.
        variables: the base weights, in the form of the module's library; also as `Trainer(variables=...)`.

    Raises:
        TypeError: if an argument has the wrong type, or no adapter recognises the module.
        ValueError: if `rank` or `alpha` is not positive; with the first batch, if a pattern matches no parameter with
            two axes, or the rank is not below the rows and columns of one.
        StepError: if the module has core-level or managed steps.

    Example:
        >>> import flax.linen as nn, optax
        >>> import elegy as eg
        >>> x = jnp.ones((4, 3))
        >>> model = eg.LoRA(nn.Dense(5), "kernel", rank=2)
        >>> trainer = eg.Trainer(model, eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
        >>> trainer.init_on_batch(x, jnp.ones((4, 5)))
        >>> jax.tree.map(jnp.shape, trainer.state.params)
        {'kernel': {'a': (3, 2), 'b': (2, 5)}}
        >>> trainer.state.merge().params["kernel"].shape
        (3, 5)
    """

    module: Any
    patterns: str | Sequence[str]
    _: dataclasses.KW_ONLY
    rank: int
    alpha: float | None = None
    train: str | Sequence[str] = ()
    variables: PyTree = None

    def __post_init__(self) -> None:
        """Checks and normalizes the arguments."""
        rank, alpha = positive_int("rank of LoRA", self.rank), self.alpha
        if alpha is None:
            alpha = float(rank)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise TypeError(f"alpha of LoRA must be a number, not {alpha!r}.")
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha of LoRA must be positive and finite, not {alpha!r}.")
        values: dict[str, Any] = {"rank": rank, "alpha": float(alpha)}
        values |= {name: as_patterns(getattr(self, name), f"{name} of LoRA") for name in ("patterns", "train")}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if not self.patterns:
            raise ValueError("LoRA needs at least one pattern of parameters, such as '*/kernel'.")

    def adapt(self, variables: PyTree = None) -> LoRAModule:
        """Returns the ElegyModule that a Trainer runs.

        Args:
            variables: the base weights, unless the LoRA has its own.
        """
        if variables is not None and self.variables is not None:
            raise ValueError("LoRA was given variables, and the Trainer too: pass the base weights once.")
        inner = resolve(self.module, self.variables if variables is None else variables)
        return LoRAModule(inner, _Rules(tuple(self.patterns), tuple(self.train), self.rank, self.alpha or 1.0))


class _Rules(NamedTuple):
    """The arguments of `LoRA`, normalized."""

    patterns: tuple[str, ...]
    train: tuple[str, ...]
    rank: int
    alpha: float


class LoRAModule(ElegyModule):
    """Runs a module with low-rank adapters; the state of `Trainer(LoRA(...))`.

    Args:
        inner: the module with the base weights.
        rules: which parameters have adapters, and which.

    Attributes:
        params: path of a parameter -> `{"a": rows x rank, "b": rank x columns}`, or the parameter itself if it is
            trained as a whole.
        batch_stats: the batch statistics of the inner module.
        base: the inner module: its parameters without those that are trained as a whole, and its other state.

    Checkpoints hold no base weights if they were given: variables, or the values of a module that has some. Weights
    that were made with the trainer's seed are in the checkpoint.
    """

    base: ElegyModule | None = field(default=None, kw_only=True)
    _rules: Any = static_field()
    _has_state: bool = static_field(repr=False)
    _given: bool = static_field(repr=False)
    _origin: Static[Origin] = static_field(repr=False)

    def __init__(self, inner: Any, rules: Any):
        for phase in _PHASES:
            if level_of(type(inner), phase) != "high" or not high_level.runs_apply(inner):
                raise StepError(
                    f"LoRA runs `init` and `apply` of a module with other parameters, but {type(inner).__name__} "
                    f"implements its {phase} step at the {level_of(type(inner), phase)} level. Write `init` and "
                    "`apply`, or add the adapters to the parameters in your own step."
                )
        self._rules = rules
        own_values = bool(jax.tree.leaves(inner.get_params())) and not overrides(type(inner), "init")
        self._has_state = inner.key is not None or own_values
        # A Keras model that is not built yet draws its weights from the generator of Keras.
        model = inner.module if is_instance_of(inner, "elegy.adapters.keras", "KerasModule") else None
        self._given = model is None or model.built
        inner = _without_run(inner)
        self._initial = inner if self._has_state else inner._initial
        self._origin = Static(Origin(inner if self._has_state else None))
        self.base = None if self._has_state else inner.replace(_initial=None)

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Makes the base as the module's own `init` does with this key, then the adapters.

        Raises:
            ValueError: if a pattern matches no parameter that can have an adapter, or the rank is too large.
        """
        inner = self._inner(key, inputs)
        if self._precision is not None:
            inner = inner.set_params(self._precision.cast_params(inner.get_params()))
        params = _paths(inner.get_params())
        _check(self._rules, params)
        key = jax.random.fold_in(key, 1)
        own = {}
        for index, (path, leaf) in enumerate(params.items()):
            if _any(self._rules.train, path):
                own[path] = leaf
            elif _any(self._rules.patterns, path) and leaf.ndim > 1:
                own[path] = _first_adapter(jax.random.fold_in(key, index), leaf, self._rules.rank)
        kept = _map(
            lambda path, leaf: optax.MaskedNode() if _any(self._rules.train, path) else leaf, inner.get_params()
        )
        base = inner.set_params(kept).replace(batch_stats=None)
        given = self._given and not self._is_made(key, inputs)
        return self.replace(params=own, batch_stats=inner.batch_stats, base=base, _given=given, _initial=None)

    def _is_made(self, key: jax.Array, inputs: PyTree) -> bool:
        """True if `init` computes the base weights: they depend on the key or the inputs."""
        if self._has_state:
            return False
        closed, out = make_jaxpr(lambda key, inputs: self._inner(key, inputs).get_params(), key, inputs)
        return bool(arguments_read(closed, range(len(jax.tree.leaves(out)))))

    def split_given(self) -> tuple[Self, PyTree]:
        """Splits off the base weights, unless `init` has computed them."""
        if self.base is None or not self._given:
            return self, None
        base, inner = self.base.split_given()
        params = base.get_params()
        base = base.set_params(_map(lambda path, leaf: optax.MaskedNode(), params))
        return self.replace(base=base), {"params": params, "module": inner}

    def with_given(self, weights: PyTree) -> Self:
        """Puts the base weights in place again."""
        assert self.base is not None
        return self.replace(base=self.base.set_params(weights["params"]).with_given(weights["module"]))

    def _inner(self, key: jax.Array, inputs: PyTree) -> Any:
        """Returns the inner module with its values."""
        if not self._has_state:
            assert self.base is not None
            return self.base.replace(_initial=self._initial).init(key, inputs)
        return self._origin.value.recall("the module of LoRA") if self._initial is None else self._initial

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls the module with its parameters and the updates of the adapters."""
        base = self._base()
        strategy = LOCAL if self._step is None else self._step.strategy
        params = self._merged(strategy.use_params(base.get_params()))
        if self._precision is not None:
            params = self._precision.cast_inputs(params)
        inner = base.set_params(params).replace(batch_stats=self.batch_stats, _logs=self._logs)
        outputs, after = inner.apply(key, inputs, training)
        kept = after.set_params(base.get_params()).replace(batch_stats=None, _logs=LogBook())
        return outputs, self.replace(base=kept, batch_stats=after.batch_stats, _logs=after._logs)

    def merge(self) -> Any:
        """Returns the inner module with the updates added to its parameters.

        Its `apply` computes the same outputs. It has the forms of its library (`variables`, `to_module()`), and
        goes into another Trainer, into `eg.weights.save`, or into another `LoRA`.

        Raises:
            ValueError: before the first state is made.
        """
        base = self._base()
        params = self._merged(base.get_params())
        return base.set_params(params).replace(
            batch_stats=self.batch_stats, key=self.key, _precision=self._precision, _logs=LogBook()
        )

    def _base(self) -> Any:
        if self.params is None or self.base is None:
            raise ValueError("there are no parameters yet: the first state is made by `fit` or `init_on_batch`.")
        return self.base

    def _merged(self, params: PyTree) -> PyTree:
        """Returns the base parameters with the updates, and those that are trained as a whole."""
        scale = self._rules.alpha / self._rules.rank

        def one(path: str, leaf: Any) -> Any:
            own = self.params.get(path)
            if own is None:
                return leaf
            return _updated(leaf, own["a"], own["b"], scale) if isinstance(own, Mapping) else own

        return _map(one, params)


def _updated(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Returns `weight + scale * a @ b`, added in the wider dtype and returned in that of the weight."""
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    update = jnp.matmul(a, b, preferred_element_type=wide).reshape(weight.shape)
    return (weight.astype(wide) + scale * update).astype(weight.dtype)


def _first_adapter(key: jax.Array, weight: jax.Array, rank: int) -> dict[str, jax.Array]:
    rows, columns = _sides(weight.shape)
    dtype = jnp.promote_types(weight.dtype, jnp.float32)
    bound = 1 / math.sqrt(rows)
    real = jax.random.uniform(key, (rows, rank), jnp.finfo(dtype).dtype, -bound, bound)
    return {"a": real.astype(dtype), "b": jnp.zeros((rank, columns), dtype)}


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    """Returns the rows and columns of a parameter: the first axis and the others, or the others and the last.

    Example:
        >>> _sides((3, 5)), _sides((3, 3, 8, 16)), _sides((16, 4, 4)), _sides((4, 4, 16))
        ((3, 5), (72, 16), (16, 16), (16, 16))
    """
    size = math.prod(shape)
    return min((size // shape[-1], shape[-1]), (shape[0], size // shape[0]), key=sum)


def _check(rules: _Rules, params: Mapping[str, Any]) -> None:
    """Checks that every pattern selects parameters, and that the rank is below their rows and columns."""
    problems, names = [], list(params)
    for pattern in (*rules.patterns, *rules.train):
        found = matching(pattern, names)
        if not found:
            problems.append(no_match(pattern, names))
            continue
        if wrong := [name for name in found if not jnp.issubdtype(params[name].dtype, jnp.inexact)]:
            problems.append(f"the pattern {pattern!r} matches {few(wrong)}, which cannot be trained: not a float array")
        if pattern in rules.train:
            continue
        if not any(params[name].ndim > 1 for name in found):
            problems.append(
                f"the pattern {pattern!r} matches only parameters with fewer than two axes, {few(found)}, which have "
                "no low-rank update: train them as a whole, `LoRA(..., train=...)`"
            )
        for name in found:
            if params[name].ndim > 1 and not _any(rules.train, name) and min(_sides(params[name].shape)) <= rules.rank:
                rows, columns = _sides(params[name].shape)
                problems.append(
                    f"rank={rules.rank} is not below the sides of {name!r}, {array_name(params[name])} as a matrix of "
                    f"{rows} x {columns}: choose a smaller rank, or train it as a whole, `LoRA(..., train={name!r})`"
                )
    if problems:
        raise ValueError("LoRA does not fit the parameters:\n  " + "\n  ".join(dict.fromkeys(problems)))


def _any(patterns: Sequence[str], path: str) -> bool:
    return any(matching(pattern, [path]) for pattern in patterns)


def _paths(params: PyTree) -> dict[str, Any]:
    return {path_name(path): jnp.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _map(function: Any, params: PyTree) -> PyTree:
    """Maps `function(path, leaf)` over parameters, places of left out ones included."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf),
        params,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def _without_run(module: ElegyModule) -> ElegyModule:
    """Returns a module without what belongs to a run, which the LoRAModule has itself."""
    return module.replace(**dict.fromkeys(_RUN_FIELDS), _freezing=(), _logs=LogBook(), _step=None)
