"""Names losses and metrics that are given alone, in lists or in dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from elegy.names import unique_names


class HasCompute(Protocol):
    """A metric of this or another library, by what all of them have."""

    def compute(self) -> Any:
        """Returns the value."""


One = TypeVar("One")
# Written without recursion: a string is a sequence of strings, of strings, ..., and would be accepted.
Nested: TypeAlias = (
    One
    | Sequence[One | list[Any] | tuple[Any, ...] | Mapping[str, Any]]
    | Mapping[str, One | list[Any] | tuple[Any, ...] | Mapping[str, Any]]
)

LossTree: TypeAlias = Nested[Callable[..., Any]]
"""A `Loss`, which can be called, or a function; or any nesting of lists, tuples and dicts of them."""

MetricTree: TypeAlias = Nested[Callable[..., Any] | HasCompute]
"""A metric, a loss or a function; or any nesting of lists, tuples and dicts of them."""


class Named(NamedTuple):
    """A loss or a metric with its names and keys.

    Args:
        name: its unique name in the logs.
        keys: the keys of the dicts that contain it, from the outermost.
        thing: the loss or the metric.
        output_name: its name in the logs if it receives only the output of its keys.
    """

    name: str
    keys: tuple[str, ...]
    thing: Any
    output_name: str


def flatten_named(things: Any, name_of: Callable[[Any], str], kind: str | None = None) -> list[Named]:
    """Lists the losses or metrics in a structure with unique names.

    The key of a dict is the name of its value; for a list inside of a dict it is the prefix of the items' own names. As
    in Keras, `output_name` is the key, `_`, and the own name or `kind`.

    Args:
        things: one thing, or any nesting of lists, tuples and dicts.
        name_of: returns the own name of a loss or metric.
        kind: `"loss"` to use it in `output_name` instead of the own name.

    Example:
        >>> [named[:2] for named in flatten_named([max, {"a": min, "b": [max, max]}], lambda f: f.__name__)]
        [('max', ()), ('a', ('a',)), ('b/max', ('b',)), ('b/max_1', ('b',))]
        >>> [named.output_name for named in flatten_named({"a": min, "b": [max]}, lambda f: f.__name__, "loss")]
        ['a_loss', 'b_max']
    """
    found = list(_walk((), things, name_of, kind, in_list=True))
    return [
        named._replace(name=name)
        for named, name in zip(found, unique_names(named.name for named in found), strict=True)
    ]


def output_names(names: Sequence[str], own: Sequence[str], by_output: Sequence[bool]) -> tuple[str, ...]:
    """Returns the names of several losses or metrics, of which some receive only the output of their key.

    Example:
        >>> output_names(["a", "l2"], ["a_loss", "l2_loss"], [True, False])
        ('a_loss', 'l2')
    """
    return tuple(unique_names(o if by else n for n, o, by in zip(names, own, by_output, strict=True)))


def _walk(
    keys: tuple[str, ...], things: Any, name_of: Callable[[Any], str], kind: str | None, in_list: bool
) -> Iterator[Named]:
    if isinstance(things, Mapping):
        for key, thing in things.items():
            yield from _walk((*keys, str(key)), thing, name_of, kind, False)
    elif isinstance(things, (list, tuple)):
        for thing in things:
            yield from _walk(keys, thing, name_of, kind, True)
    else:
        own = name_of(things)
        alone = bool(keys) and not in_list
        name = "/".join(keys if alone else (*keys, own))
        yield Named(name, keys, things, "_".join((*keys, kind if alone and kind else own)))
