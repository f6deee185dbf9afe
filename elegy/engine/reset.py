"""The reset of a state at the start of an epoch, compiled for the leaves that it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax

from elegy.engine.keys import key_impls, unwrap_keys, wrap_keys
from elegy.engine.program import check_unchanged
from elegy.flat import make_jaxpr
from elegy.module import managed
from elegy.strategies import Strategy


def checked_reset(state: Any) -> Any:
    """Runs the module's `reset_step`.

    Raises:
        StepError: if it does not return a state of the same structure.
    """
    after = managed.check_state(state, state.reset_step(), "reset_step")
    check_unchanged(state, after, f"{type(state).__name__}.reset_step")
    return after


class Reset(NamedTuple):
    """A compiled reset.

    Args:
        kernel: `(changed, constant) -> (None, changed)`, lists of leaves with raw arrays for keys.
        changed: positions of the leaves that it changes.
        constant: positions of the others.
    """

    kernel: Callable[[list[Any], list[Any]], tuple[None, list[Any]]]
    changed: list[int]
    constant: list[int]

    @classmethod
    def of(cls, struct: Any, strategy: Strategy) -> Self:
        """Traces the reset of states of one structure."""
        impls: dict[int, Any] = {}

        def reset(state: Any) -> Any:
            impls.update(key_impls(jax.tree.leaves(state)))
            return checked_reset(state)

        closed, _ = make_jaxpr(reset, struct)
        treedef = jax.tree.structure(struct)
        ins, outs = closed.jaxpr.invars, closed.jaxpr.outvars
        changed = [i for i in range(len(ins)) if outs[i] is not ins[i]]
        constant = [i for i in range(len(ins)) if outs[i] is ins[i]]

        def kernel(moved: list[Any], kept: list[Any]) -> tuple[None, list[Any]]:
            leaves = dict(zip((*changed, *constant), (*moved, *kept), strict=True))
            state = jax.tree.unflatten(treedef, wrap_keys([leaves[i] for i in range(len(leaves))], impls))
            after = unwrap_keys(jax.tree.leaves(state.reset_step()), impls)
            return None, [after[i] for i in changed]

        kernel.__name__ = "reset"
        return cls(strategy.compile(kernel, ("state", "state")), changed, constant)
