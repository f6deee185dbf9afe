"""An Optax optimizer and its state as one immutable pytree."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeAlias

import jax
import jax.numpy as jnp
import optax

from elegy.names import array_name, path_name
from elegy.pytree import Pytree, Static, field, static_field
from elegy.types import PyTree

Transformation: TypeAlias = optax.GradientTransformation | optax.MultiSteps
"""The types of Optax transformations: `optax.MultiSteps` is not a `GradientTransformation`."""


class LookaheadPair(NamedTuple):
    """The state of an optimizer that keeps a second set of parameters, as `optax.lookahead` does.

    Attributes:
        inner: the transformation's state.
        slow: the slow parameters, which Optax recommends for evaluation. The module has the fast parameters.
    """

    inner: PyTree
    slow: PyTree


class Optimizer(Pytree):
    """A gradient transformation and its state.

    Args:
        tx: an `optax.GradientTransformation` (several are chained with `optax.chain`).
        state: the transformation's state, None before `init`; a `LookaheadPair` if the transformation takes its
            parameters as `optax.LookaheadParams`.

    Raises:
        TypeError: if `tx` has no `init` and `update`.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones(2)}
        >>> optimizer = Optimizer(optax.sgd(0.1)).init(params)
        >>> params, optimizer = optimizer.update({"w": jnp.ones(2)}, params)
        >>> params["w"]
        Array([0.9, 0.9], dtype=float32)
    """

    state: PyTree = field(default=None)
    _tx: Static[Transformation] = static_field(default=None, repr=False)

    def __init__(self, tx: Transformation, state: PyTree = None):
        if not callable(getattr(tx, "init", None)) or not callable(getattr(tx, "update", None)):
            raise TypeError(
                f"the optimizer must be an optax.GradientTransformation such as optax.adam(1e-3), not {tx!r}."
            )
        self._tx = Static(tx)
        self.state = state

    @property
    def tx(self) -> Transformation:
        """The gradient transformation."""
        return self._tx.value

    def init(self, params: PyTree) -> Self:
        """Returns the optimizer with a fresh state for `params` (a pytree of float or complex arrays)."""
        try:
            with _lookahead_unnoticed():
                state = self.tx.init(params)
        except Exception:  # perhaps because it takes pairs only
            if (paired := self._of_pairs(params)) is None:
                raise
            return paired
        paired = self._of_pairs(params) if _holds(state, optax.LookaheadState) else None
        return self.replace(state=state) if paired is None else paired

    def _of_pairs(self, params: PyTree) -> Self | None:
        """Returns the optimizer with a fresh state for pairs of parameters; None if it does not take them."""
        pair = optax.LookaheadParams.init_synced(params)
        if not _takes_pairs(self.tx, pair):
            return None
        return self.replace(state=LookaheadPair(self.tx.init(pair), params))

    def update(self, grads: PyTree, params: PyTree, **extra: Any) -> tuple[PyTree, Self]:
        """Takes one step.

        Args:
            grads: gradients, of the structure and shapes of `params`; those of complex parameters are conjugated, so
                that the parameters move against them.
            params: the parameters; their dtypes are kept.
            **extra: arguments of a `GradientTransformationExtraArgs`; those that it does not accept are dropped. A
                training step passes `value`, the loss of the whole batch; `grad`, the gradients; `value_fn` and
                `obj_fn`, the loss as a function of the parameters; `grad_fn`, the gradients as a function of the
                parameters.

        Returns:
            `(new_params, new_optimizer)`.

        Raises:
            RuntimeError: before `init`.
            TypeError: if a wrapper that cannot update pairs of parameters contains `optax.lookahead`.
        """
        if self.state is None:
            raise RuntimeError("the optimizer has no state yet: call `optimizer = optimizer.init(params)` first.")
        if isinstance(self.state, LookaheadPair):
            fast_and_slow = optax.LookaheadParams(params, self.state.slow)
            updates, inner = update_with(self.tx, grads, self.state.inner, fast_and_slow, extra)
            fast = optax.apply_updates(params, updates.fast)
            slow = optax.apply_updates(self.state.slow, updates.slow)
            return fast, self.replace(state=LookaheadPair(inner, slow))
        updates, state = update_with(self.tx, grads, self.state, params, extra)
        return optax.apply_updates(params, updates), self.replace(state=state)

    def moved_to(self, params: PyTree) -> Self:
        """Returns the optimizer for another selection of its parameters.

        Args:
            params: the parameters to train from now on, with `optax.MaskedNode()` in place of frozen ones.

        Returns:
            The optimizer whose state has the old values, except for parameters that the old state did not have: their
            values are those of `init`.

        Raises:
            ValueError: if an array of the state belongs to several parameters, as in `optax.flatten`.
        """
        old = dict(jax.tree_util.tree_leaves_with_path(self.state))

        def kept(path: Any, leaf: Any) -> Any:
            found = old.get(path, leaf)
            if jnp.shape(found) != jnp.shape(leaf):
                raise ValueError(
                    f"the optimizer's state {path_name(path)} has values of several parameters in one array, "
                    f"{array_name(found)}, which would become {array_name(leaf)}, so it cannot be kept when other "
                    "parameters are frozen. Freeze before the first state is made, `Trainer(freeze=...)`, or leave out "
                    "the wrapper (`optax.flatten`)."
                )
            return found

        fresh = self.init(params)
        return fresh.replace(state=jax.tree_util.tree_map_with_path(kept, fresh.state))

    def check_gradients(self) -> None:
        """Checks that the transformation takes the gradient of a batch, which a training step passes.

        Raises:
            TypeError: if the transformation takes gradients of single examples.
        """
        if _holds(self.state, optax.contrib.DifferentiallyPrivateAggregateState):
            raise TypeError(
                "optax.contrib.differentially_private_aggregate (and optax.contrib.dpsgd, which contains it) takes the "
                "gradient of each example, but a high-level or managed step computes that of the whole batch. Write "
                "`train_step` (core level), with the gradients of `jax.vmap(jax.grad(loss), (None, 0))`."
            )


def update_with(
    tx: Transformation, grads: PyTree, state: PyTree, params: PyTree, extra: dict[str, Any]
) -> tuple[Any, PyTree]:
    """Calls the `update` of a transformation with those extra arguments that it accepts.

    Args:
        tx: the transformation.
        grads: the gradients.
        state: the state of the transformation.
        params: the parameters.
        extra: arguments by name.

    Raises:
        TypeError: if a wrapper that cannot update pairs of parameters contains `optax.lookahead`.
    """
    # MultiSteps passes extra arguments on, but is not a GradientTransformationExtraArgs.
    tx = tx if isinstance(tx, optax.MultiSteps) else optax.with_extra_args_support(tx)
    while True:
        try:
            return tx.update(grads, state, params, **extra)
        except (TypeError, ValueError, AttributeError) as error:
            # Some transformations, such as `optax.contrib.sam`, accept only named extra arguments, and inside of a
            # chain their signature is hidden.
            refused = {name for name in extra if f"unexpected keyword argument '{name}'" in str(error)}
            if not refused:
                if _holds(state, optax.LookaheadState):
                    raise _lookahead_error(error) from error
                raise
            extra = {name: value for name, value in extra.items() if name not in refused}


def _holds(state: PyTree, kind: type) -> bool:
    """True if an optimizer state contains a state of type `kind`."""

    def matches(node: Any) -> bool:
        return isinstance(node, kind)

    return any(map(matches, jax.tree.leaves(state, is_leaf=matches)))


def _lookahead_error(error: Exception) -> TypeError:
    text = str(error).partition("\n")[0]
    return TypeError(
        "the optimizer contains optax.lookahead, whose parameters are pairs, fast and slow. It works alone, in "
        "optax.chain and in optax.inject_hyperparams. Other wrappers, such as optax.MultiSteps, masked, partition and "
        "apply_if_finite, cannot contain it. Write `optax.lookahead(optax.apply_if_finite(...), ...)` instead. "
        f"Optax reports {type(error).__name__}: {text}"
    )


@contextlib.contextmanager
def _lookahead_unnoticed() -> Iterator[None]:
    """A block in which `optax.lookahead` does not warn that it got parameters instead of a pair of them."""

    def other(record: logging.LogRecord) -> bool:
        return "`params` has no attribute `fast`" not in str(record.msg)

    absl = logging.getLogger("absl")  # that of Optax
    absl.addFilter(other)
    try:
        yield
    finally:
        absl.removeFilter(other)


def _takes_pairs(tx: Transformation, pair: optax.LookaheadParams) -> bool:
    """True if a transformation contains `optax.lookahead`, whose parameters are pairs."""
    try:
        return _holds(jax.eval_shape(tx.init, pair), optax.LookaheadState)
    except Exception:  # a transformation without lookahead refuses pairs
        return False


__all__ = ["LookaheadPair", "Optimizer"]


def current_hyperparameters(optimizer: Optimizer) -> dict[str, Any]:
    """Returns the hyperparameters that `optax.inject_hyperparams` keeps in the state, by path: the last ones used.

    Args:
        optimizer: an optimizer with its state.
    """
    leaves = jax.tree_util.tree_leaves_with_path(optimizer)
    return {name: leaf for path, leaf in leaves if "/hyperparams/" in (name := path_name(path))}


def hyperparameters(optimizer: Optimizer) -> dict[str, Any]:
    """Returns the hyperparameters that `optax.inject_hyperparams` keeps in the state, by path, without scheduled ones.

    Args:
        optimizer: an optimizer with its state.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
        >>> list(hyperparameters(Optimizer(tx).init(jnp.ones(2))))
        ['state/hyperparams/learning_rate']
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(optimizer)]

    def scheduled(path: str) -> bool:
        before, _, name = path.rpartition("/hyperparams/")
        return any(other.startswith(f"{before}/hyperparams_states/{name}/") for other in paths)

    return {path: leaf for path, leaf in current_hyperparameters(optimizer).items() if not scheduled(path)}


def group_of(path: str) -> str | None:
    """Returns the group of parameters of a path in the state of an `optax.partition`, without `/*` at its end.

    Args:
        path: a path, as from `hyperparameters`. The group of another state is None.

    Example:
        >>> group_of("state/inner_states/head/*/inner_state/0/hyperparams/b1"), group_of("state/0/hyperparams/b1")
        ('head', None)
    """
    if not path.startswith(_GROUPS):
        return None
    return path.removeprefix(_GROUPS).partition("/inner_state/")[0].removesuffix("/*")


_GROUPS = "state/inner_states/"


def with_hyperparameters(optimizer: Optimizer, values: Mapping[str, Any]) -> Optimizer:
    """Returns the optimizer with other hyperparameters.

    Args:
        optimizer: the optimizer.
        values: hyperparameters by path, as from `hyperparameters`.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: values.get(path_name(path), leaf), optimizer)
