"""Immutable dataclasses that are JAX pytrees."""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Self, TypeVar, dataclass_transform

import jax
import numpy as np

from elegy.errors import FrozenError
from elegy.fields import field, is_static, static_field
from elegy.html.tree import tree_html
from elegy.names import array_name

T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P", bound="Pytree")
A = ParamSpec("A")

_UNLOCKED = "_pytree_unlocked"
_MISSING_TYPE: Any = type(dataclasses.MISSING)


class Static(Generic[T]):
    """Wraps any object as a constant that is equal only to itself.

    Third-party modules, optimizers and functions may be unhashable or compare by value; the wrapper can be in a static
    field.

    Example:
        >>> Static([1]) == Static([1])
        False
    """

    __slots__ = ("value",)

    def __init__(self, value: T):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"Static({self.value!r})"


def _check_static(cls: type, name: str, value: Any) -> None:
    where = f"{cls.__name__}.{name}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if isinstance(leaf, (jax.Array, np.ndarray)):
            inside = jax.tree_util.keystr(path)
            raise TypeError(
                f"the static field {where}{inside} holds an array ({_short(leaf)}). Static values are part of the "
                "tree's structure; declare the field with `elegy.field()` to make it a child."
            )
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"the static field {where} holds a {type(value).__name__}, which cannot be hashed. Use a hashable value "
            "(a tuple for a list), or wrap the object in `elegy.Static(...)` to compare it by identity."
        ) from error


def _short(value: Any) -> str:
    if isinstance(value, (jax.Array, np.ndarray)) or hasattr(value, "aval"):
        return array_name(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        inner = ", ".join(_short(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    return repr(value)


def _values_getter(names: tuple[str, ...]) -> Callable[[Any], tuple]:
    if len(names) > 1:
        return operator.attrgetter(*names)
    if names:
        get = operator.attrgetter(names[0])
        return lambda tree: (get(tree),)
    return lambda tree: ()


def _register(cls: type[Pytree]) -> None:
    children: tuple[str, ...]
    static: tuple[str, ...]
    keys: tuple[Any, ...]  # of `jax.tree_util.GetAttrKey`, which JAX declares as Any
    get_children: Callable[[Any], tuple]
    get_static: Callable[[Any], tuple]

    def read_fields() -> None:
        nonlocal children, static, keys, get_children, get_static
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # every subclass is a dataclass
        children = tuple(f.name for f in fields if not is_static(f))
        static = tuple(f.name for f in fields if is_static(f))
        keys = tuple(jax.tree_util.GetAttrKey(name) for name in children)
        get_children, get_static = _values_getter(children), _values_getter(static)
        cls._static_names = static

    def flatten(tree: Any) -> tuple[tuple, tuple]:
        return get_children(tree), get_static(tree)

    def flatten_with_keys(tree: Any) -> tuple[tuple, tuple]:
        return tuple(zip(keys, get_children(tree), strict=True)), get_static(tree)

    def unflatten(aux: tuple, values: Any, new: Callable[[type], Any] = object.__new__) -> Any:
        tree = new(cls)
        state = tree.__dict__
        state.update(zip(children, values, strict=True))
        if static:
            state.update(zip(static, aux, strict=True))
        return tree

    read_fields()
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    _FIELD_READERS[cls] = read_fields


_FIELD_READERS: dict[type, Callable[[], None]] = {}  # JAX keeps every registered class for ever, too


class _PytreeMeta(abc.ABCMeta):
    def __call__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """Builds an instance: fields are free inside `__init__`, filled from defaults, checked, frozen."""
        tree: Any = object.__new__(cls)  # type: ignore[arg-type]  # a metaclass: cls is a class
        tree.__dict__[_UNLOCKED] = True
        try:
            tree.__init__(*args, **kwargs)
        except TypeError as error:
            instead = [hint for name, hint in tree._removed_arguments.items() if name in kwargs]
            if dataclasses.is_dataclass(cls) and "positional argument" in str(error):
                given = [one for one in inspect.signature(cls).parameters.values() if one.kind is one.KEYWORD_ONLY]
                if given and len(args) > len(inspect.signature(cls).parameters) - len(given):
                    instead.append(f"These are given by name: {', '.join(one.name for one in given)}.")
            if not instead:
                raise
            raise TypeError(f"{error}. {' '.join(instead)}") from error
        tree.__dict__.pop(_UNLOCKED, None)
        tree._complete()
        return tree

    @property
    def __signature__(cls) -> inspect.Signature:
        """The parameters of `__init__`, for editors and `help`: instances do not see it."""
        parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]  # this very class
        return inspect.Signature(list(parameters)[1:])

    def __setattr__(cls, name: str, value: Any) -> None:
        """Notices fields that arrive late: cloudpickle makes an empty class first, then assigns its attributes."""
        super().__setattr__(name, value)
        if name == "__dataclass_fields__" and cls in _FIELD_READERS:
            _FIELD_READERS[cls]()


# Not `frozen_default`: type checkers would refuse what a hand-written `__init__` and `toplevel_mutable` assign.
@dataclass_transform(field_specifiers=(field, static_field), eq_default=False)
class Pytree(metaclass=_PytreeMeta):
    """A frozen dataclass that is a JAX pytree with named key paths.

    Annotated names are fields: children by default, part of the structure with `static_field`. Two
    instances are equal only if they are the same object. A hand-written `__init__` may assign every
    declared field; JAX never runs it again when it rebuilds the tree.

    Raises:
        FrozenError: if a field is assigned or deleted after construction.
        TypeError: if a static field holds an array or an unhashable value, or a field has no value.

    Example:
        >>> class Point(Pytree):
        ...     x: float
        ...     y: float
        >>> point = Point(1.0, 2.0)
        >>> point.replace(y=5.0)
        Point(x=1.0, y=5.0)
        >>> jax.tree.map(lambda v: v * 10, point)
        Point(x=10.0, y=20.0)
        >>> point.x = 3.0
        Traceback (most recent call last):
        ...
        elegy.errors.FrozenError: cannot assign Point.x: the object is immutable. Make a new one with `.replace(x=...)`.
    """

    _static_names: tuple[str, ...] = ()
    _own_init = False
    _removed_arguments: ClassVar[dict[str, str]] = {}  # of earlier versions, with what to write instead

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # A hand-written __init__ is inherited like any method; a generated one is made anew for the new fields.
        cls._own_init = "__init__" in cls.__dict__ or cls._own_init
        dataclasses.dataclass(init=not cls._own_init, eq=False, repr=False)(cls)
        _register(cls)

    def _complete(self) -> None:
        state = vars(self)  # for type checkers `self.__dict__` is that of a class, because there is a metaclass
        for f in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            if f.name in state:
                continue
            # By type, because MISSING is another object in a class that cloudpickle brought from another process.
            if not isinstance(f.default, _MISSING_TYPE):
                state[f.name] = f.default
            elif not isinstance(f.default_factory, _MISSING_TYPE):
                state[f.name] = f.default_factory()  # type: ignore[operator]  # no MISSING here
            else:
                raise TypeError(f"{type(self).__name__}.__init__ left the field {f.name!r} without a value.")
        self._check_static_fields(self._static_names)

    def _check_static_fields(self, names: Any) -> None:
        for name in names:
            _check_static(type(self), name, self.__dict__[name])

    def __setattr__(self, name: str, value: Any) -> None:
        if _UNLOCKED not in self.__dict__:
            raise FrozenError(
                f"cannot assign {type(self).__name__}.{name}: the object is immutable. "
                f"Make a new one with `.replace({name}=...)`."
            )
        if name not in self.__dataclass_fields__:  # type: ignore[attr-defined]  # set by dataclass()
            raise FrozenError(
                f"{type(self).__name__} has no field {name!r}, so its value would be lost when JAX rebuilds the "
                f"tree. Declare it in the class body (`{name}: ... = elegy.field(...)`), then use `.replace`."
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenError(f"cannot delete {type(self).__name__}.{name}: the object is immutable. See `.replace`.")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _UNLOCKED}

    def __repr__(self) -> str:
        shown = (
            f"{f.name}={_short(getattr(self, f.name))}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
            if f.repr
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str | None:
        """Returns the tree for notebooks, as Treescope shows it if it is installed."""
        return tree_html(self)

    def replace(self, **fields: Any) -> Self:
        """Returns a copy with some fields changed.

        Args:
            **fields: new values by field name.

        Raises:
            TypeError: if a name is not a field (the message lists the fields), or a static value is not hashable.
        """
        known = self.__dataclass_fields__  # type: ignore[attr-defined]  # set by dataclass()
        for name in fields:
            if name not in known:
                raise TypeError(f"{type(self).__name__} has no field {name!r}. Its fields are: {', '.join(known)}.")
        tree = object.__new__(type(self))
        state = vars(tree)
        state.update(vars(self))
        state.pop(_UNLOCKED, None)
        state.update(fields)
        tree._check_static_fields(name for name in fields if name in self._static_names)
        return tree

    def mutable(self, method: str | Callable = "__call__") -> Callable[..., tuple[Any, Self]]:
        """Returns a function that runs `method` on a copy whose fields, subtrees included, can be assigned.

        Args:
            method: a method's name, or a function whose first argument is the tree.

        Returns:
            A function `(*args, **kwargs) -> (output, new_tree)`. The original never changes.

        Example:
            >>> class Counter(Pytree):
            ...     count: int = 0
            ...     def step(self, by):
            ...         self.count += by
            ...         return self.count
            >>> Counter().mutable("step")(2)
            (2, Counter(count=2))
        """
        function = getattr(type(self), method) if isinstance(method, str) else method
        return functools.partial(mutable(function), self)


def _own(value: Any) -> Any:
    """Copies what `+=` changes in place: an array of NumPy; also in lists, dicts and tuples, and these themselves."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(map(_own, value))
    return {key: _own(item) for key, item in value.items()} if type(value) is dict else value


def _unlock_all(tree: Any) -> list[Pytree]:
    found: list[Pytree] = []

    def visit(node: Any) -> bool:
        if isinstance(node, Pytree):
            found.append(node)
        return False

    jax.tree.leaves(tree, is_leaf=visit)
    return found


@contextmanager
def _unlocked(trees: list[Pytree]) -> Iterator[None]:
    for tree in trees:
        vars(tree)[_UNLOCKED] = True
    try:
        yield
    finally:
        for tree in trees:
            vars(tree).pop(_UNLOCKED, None)
    for tree in trees:
        tree._check_static_fields(tree._static_names)


def _function_of(method: Callable) -> Callable:
    return method.__func__ if isinstance(method, types.MethodType) else method


def mutable(method: Callable) -> Callable[..., tuple[Any, Any]]:
    """Turns `method(tree, *args)`, which assigns fields, into a pure function.

    Args:
        method: a bound or unbound method, or a function whose first argument is a `Pytree`.

    Returns:
        A function `(tree, *args, **kwargs) -> (output, new_tree)`. The tree that is passed in, subtrees
        included, never changes.

    Example:
        >>> class Counter(Pytree):
        ...     count: int = 0
        ...     def step(self):
        ...         self.count += 1
        >>> counter = Counter()
        >>> mutable(counter.step)(counter)
        (None, Counter(count=1))
        >>> counter
        Counter(count=0)
    """
    function = _function_of(method)

    @functools.wraps(function)
    def pure(tree: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not isinstance(tree, Pytree):
            raise TypeError(f"the first argument must be a Pytree, not a {type(tree).__name__}.")
        copy = jax.tree.map(_own, tree)
        with _unlocked(_unlock_all(copy)):
            return function(copy, *args, **kwargs), copy

    return pure


def toplevel_mutable(method: Callable[Concatenate[P, A], R]) -> Callable[Concatenate[P, A], tuple[R, P]]:
    """Decorates a method that assigns fields of `self` only: callers get `(output, new_self)`.

    Inside the method `self` is a copy, with lists, dicts and NumPy arrays of its own; its subtrees stay frozen.

    Example:
        >>> class Counter(Pytree):
        ...     count: int = 0
        ...     @toplevel_mutable
        ...     def step(self):
        ...         self.count += 1
        >>> Counter().step()
        (None, Counter(count=1))
    """
    function = _function_of(method)

    @functools.wraps(function)
    def pure(self: P, *args: A.args, **kwargs: A.kwargs) -> tuple[R, P]:
        copy = self.replace()
        vars(copy).update((name, _own(value)) for name, value in vars(copy).items() if name not in copy._static_names)
        with _unlocked([copy]):
            return function(copy, *args, **kwargs), copy

    return pure
