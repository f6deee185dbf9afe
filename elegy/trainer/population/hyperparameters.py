"""What differs between the members of a population: seeds, and hyperparameters by name."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from elegy.integers import as_integer, positive_int
from elegy.module.recipe import STATIC_ADVICE
from elegy.trainer import checks

Values = Mapping[str, ArrayLike | Sequence[float]]


class Differences(NamedTuple):
    """What differs between members.

    Args:
        values: by name, the value of each member, `[members]`.
        seeds: the seed of each member.
    """

    values: dict[str, jax.Array]
    seeds: tuple[int, ...]

    def member(self, index: int) -> dict[str, Any]:
        """The hyperparameters of one member, as Python numbers."""
        return {name: np.asarray(value)[index].item() for name, value in self.values.items()}


def differences(over: Values | None, grid: Values | None, seeds: int | Sequence[int] | None, seed: int) -> Differences:
    """Lists the members of a population.

    Args:
        over: by name, the value of each member.
        grid: by name, values of which each combination, with each seed, is a member.
        seeds: the seeds, or how many: 0, 1, and so on; None for that of the trainer.
        seed: that of the trainer.

    Raises:
        TypeError: if values are not numbers, or seeds not integers.
        ValueError: if lengths differ, values have other dimensions, or nothing says how many members there are.

    Example:
        >>> found = differences(None, {"rate": [0.1, 0.2]}, 2, 42)
        >>> found.values["rate"].tolist(), found.seeds
        ([0.10000000149011612, 0.10000000149011612, 0.20000000298023224, 0.20000000298023224], (0, 1, 0, 1))
    """
    if over and grid:
        raise ValueError("over and grid were both given: `over` lists the members one by one, `grid` combines values.")
    given = None if seeds is None else _seeds(seeds)
    values = {name: _numbers(name, value) for name, value in (over or grid or {}).items()}
    if grid:
        rows = list(itertools.product(*map(range, map(len, values.values())), given or [seed]))
        chosen = np.array([row[:-1] for row in rows])
        values = {name: value[chosen[:, i]] for i, (name, value) in enumerate(values.items())}
        return Differences(values, tuple(row[-1] for row in rows))
    lengths = {name: len(value) for name, value in values.items()} | ({} if given is None else {"seeds": len(given)})
    if not lengths:
        raise ValueError(
            "a population needs to know how many members it has: pass `seeds=16`, "
            '`over={"learning_rate": jnp.array([...])}` or `grid={...}`.'
        )
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(
            f"the members of a population need one value each, but the numbers of values differ: {shown}. "
            "`grid=` trains every combination instead."
        )
    return Differences(values, given or (seed,) * next(iter(lengths.values())))


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if as_integer(seeds) is not None:
        return tuple(range(positive_int("seeds", seeds)))
    if not isinstance(seeds, (list, tuple, range, np.ndarray, jax.Array)):
        raise TypeError(f"seeds must be a number of members or a list of integers, not {seeds!r}.")
    if not len(seeds):
        raise ValueError("seeds is empty: a population has at least one member.")
    return tuple(checks.seed(one) for one in np.asarray(seeds).tolist())


def _numbers(name: str, values: Any) -> jax.Array:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"the values of {name!r} are {values!r}, but hyperparameters of a population are numbers: one compiled "
            "step has those of all members in one array. Make one population for each value of anything else."
        )
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name!r} needs one number for each member, but its shape is {array.shape}.")
    return jnp.asarray(array)


def check_names(build: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Checks that a function takes hyperparameters of these names.

    Raises:
        TypeError: if it does not, or needs others; the message lists its parameters.
    """
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(**values)
    except TypeError as error:
        raise TypeError(
            f"the function that builds a member cannot be called with {', '.join(values) or 'no argument'}: {error}. "
            f"Its parameters are: {', '.join(signature.parameters) or 'none'}."
        ) from error


def check_traceable(build: Callable[..., Any], values: Mapping[str, jax.Array]) -> None:
    """Checks that a function can be called with traced hyperparameters.

    Raises:
        TypeError: naming those that cannot be traced.
    """
    first = {name: np.asarray(value)[0].item() for name, value in values.items()}
    for name, value in values.items():

        def built(one: Any, name: str = name) -> None:
            build(**{**first, name: one})

        try:
            jax.eval_shape(built, value[0])
        except (jax.errors.JAXTypeError, TypeError, AttributeError) as error:
            raise TypeError(
                f"the hyperparameter {name!r} cannot be that of a population: "
                f"{type(error).__name__}: {str(error).splitlines()[0]} {STATIC_ADVICE}"
            ) from error


def equal(one: Any, other: Any) -> bool:
    """Compares two JSON values, of which NaN equals NaN.

    Example:
        >>> equal({"rate": [0.1, float("nan")]}, {"rate": [0.1, float("nan")]})
        True
    """
    first, second = jax.tree.leaves(one), jax.tree.leaves(other)
    tree: Any = jax.tree.structure(one)
    return tree == jax.tree.structure(other) and all(
        a == b or (a != a and b != b) for a, b in zip(first, second, strict=True)
    )
