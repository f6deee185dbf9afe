"""An adapter for treex modules: makes the last release of treex, which is unmaintained, work on current JAX."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from elegy.adapters.arguments import call_arguments
from elegy.adapters.origin import Origin, Weak
from elegy.adapters.variables import match_variables, nest, paths
from elegy.lazy import require
from elegy.module import ElegyModule
from elegy.names import path_name
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree

_REMOVED = ("tree_flatten", "tree_leaves", "tree_map", "tree_unflatten")
_PURPOSE = "elegy.adapters.TreexModule"


def load_treex() -> types.ModuleType:
    """Imports treex 0.6.9, which imports names that current NumPy, JAX and Flax no longer have.

    The names exist during the import only; they are removed afterwards.
    Its requirements exclude current versions, so it is installed without them:
    `pip install --no-deps treex==0.6.9 treeo==0.0.9` and `pip install einops pyyaml flax`.

    Raises:
        ImportError: if one of them is not installed, or treeo is not 0.0.x.

    Example, where treex is installed::

        tx = load_treex()

        class Net(tx.Module): ...
    """
    if "treex" in sys.modules:
        return sys.modules["treex"]
    if any(importlib.util.find_spec(name) is None for name in ("treex", "treeo", "einops", "yaml")):
        raise ImportError(
            f"{_PURPOSE} needs treex: `pip install --no-deps treex==0.6.9 treeo==0.0.9`, then "
            "`pip install einops pyyaml flax`."
        )
    with _removed_names(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        treex = importlib.import_module("treex")
        treeo = importlib.import_module("treeo")
    if not treeo.__version__.startswith("0.0."):
        raise ImportError(f"treex needs treeo 0.0.9, but {treeo.__version__} is installed: pip install treeo==0.0.9.")
    old_jax = _OldJax("jax")
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("treex", "treeo") and getattr(module, "jax", None) is jax:
            module.jax = old_jax  # type: ignore[attr-defined]  # only treex and treeo see it
    return treex


class TreexModule(ElegyModule):
    """Runs a treex module.

    `Parameter`s that are not frozen are in the field `params`, `BatchStat`s in `batch_stats`, everything else but
    random keys in `variables`. Random keys come from each step's key. An initialised module keeps its values; otherwise
    `init` initialises it.

    Args:
        module: the treex module.
        variables: the initial values: an initialised treex module of the same structure.

    Attributes:
        variables: a nested dict of frozen parameters, caches and other state.

    Raises:
        TypeError: if `module` is not a treex module.
        ValueError: at init, if `variables` do not fit the module; the message lists the paths.

    Example, where treex is installed::

        tx = load_treex()
        state = TreexModule(tx.Linear(2)).init(jax.random.key(0), jnp.ones((4, 3)))
    """

    variables: PyTree = field(default=None, kw_only=True)
    _source: Static[Callable[[], Any]] = static_field(repr=False)
    _origin: Static[Origin] = static_field(repr=False)
    _shape: Static[_Shape] = static_field(repr=False)

    def __init__(self, module: Any, *, variables: Any = None):
        tx = load_treex()
        for value in (module, variables):
            if value is not None and not isinstance(value, tx.Module):
                raise TypeError(f"TreexModule needs a treex.Module, not {value!r:.200}.")
        initialised = module.initialized
        self._shape = Static(_Shape(type(module).__name__))
        self._source = Static(Weak(module) if initialised else lambda: module)
        self._initial = {
            "own": self._look_at(module) if initialised else None,
            "given": {} if variables is None else _grouped(variables, jax.tree.leaves(variables)),
        }
        self._origin = Static(Origin(self._initial["given"]))

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Initialises the module, or starts from its values."""
        who, module = self._shape.value.name, self._source.value()
        initial = self._initial
        given = self._origin.value.recall(who) if initial is None else initial["given"]
        if module is None:
            if initial is None:
                raise Origin.gone(who)
            own = initial["own"]
        else:
            if not module.initialized:
                args, kwargs = call_arguments(module.__call__, inputs, True)
                with _frozen_dicts():
                    module = module.init(key, load_treex().Inputs(*args, **kwargs))
            own = self._look_at(module)
        return self._with(match_variables(own, given, who)).replace(_initial=None)

    def _look_at(self, module: Any) -> dict[str, PyTree]:
        """Returns the values of an initialised module, and stores its structure."""
        module = module.train()
        leaves, self._shape.value.treedef = jax.tree.flatten(module)
        return _grouped(module, leaves)

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls a copy of the module in the mode of the step."""
        module = self._merged(key).train(training)
        args, kwargs = call_arguments(module.__call__, inputs, training)
        with _frozen_dicts():
            outputs = module(*args, **kwargs)
        after = module.train()
        return outputs, self._with(_grouped(after, jax.tree.leaves(after)))

    def to_module(self) -> Any:
        """Returns the treex module with the values of this state.

        Raises:
            ValueError: before the first state is made.
        """
        if self.params is None:
            raise ValueError("there are no values yet: the first state is made by `fit` or `init_on_batch`.")
        return self._merged(jax.random.key(0) if self.key is None else self.key)

    def _with(self, groups: dict[str, PyTree]) -> Self:
        return self.replace(
            params=groups["params"], batch_stats=groups["batch_stats"] or None, variables=groups["variables"] or None
        )

    def _merged(self, key: jax.Array) -> Any:
        treedef = self._shape.value.treedef
        places = _places(jax.tree.unflatten(treedef, range(treedef.num_leaves)))
        values = {name: paths(getattr(self, name)) for name in ("params", "batch_stats", "variables")}
        leaves = [
            jax.random.fold_in(key, i) if group == "keys" else values[group][path]
            for i, (group, path) in enumerate(places)
        ]
        return jax.tree.unflatten(treedef, leaves)


class _Shape:
    """The structure of an initialised module, which `init` finds.

    The structure itself cannot be a static field: treex's structures of two traces do not compare equal.
    """

    def __init__(self, name: str):
        self.name = name
        self.treedef: Any = None


class _OldJax(types.ModuleType):
    """The `jax` module with the names that treex uses."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jax.tree_util if name in _REMOVED else jax, name)


def _grouped(module: Any, leaves: list[Any]) -> dict[str, PyTree]:
    """Returns the values of a module as nested dicts, without random keys."""
    found: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}, "variables": {}, "keys": {}}
    for (group, path), leaf in zip(_places(module), leaves, strict=True):
        found[group][path] = leaf if group == "keys" else jnp.asarray(leaf)
    return {name: nest(values) for name, values in found.items() if name != "keys"}


def _places(module: Any) -> list[tuple[str, str]]:
    """Returns the group and the path of each leaf of a module."""
    tx, treeo = load_treex(), importlib.import_module("treeo")
    with treeo.add_field_info():
        infos = jax.tree_util.tree_leaves(module)
    # In treeo, the only child of a node is a dict of its fields, which has no name.
    found = jax.tree_util.tree_leaves_with_path(module)
    named = (tuple(part for part in path if not isinstance(part, jax.tree_util.FlattenedIndexKey)) for path, _ in found)
    return [(_group(tx, info), path_name(path)) for info, path in zip(infos, named, strict=True)]


def _group(tx: Any, info: Any) -> str:
    if issubclass(info.kind, tx.Rng):
        return "keys"
    if issubclass(info.kind, tx.Parameter) and not info.module.frozen:
        return "params"
    return "batch_stats" if issubclass(info.kind, tx.BatchStat) else "variables"


def _frozen_dicts() -> contextlib.AbstractContextManager[Any]:
    """Makes Flax's `init` and `apply` return a FrozenDict, as treex expects."""
    return require("flax", _PURPOSE).config.temp_flip_flag("return_frozendict", True)


@contextlib.contextmanager
def _removed_names() -> Iterator[None]:
    """Adds names that treex imports and that current versions have removed."""
    initializers = require("flax.linen", _PURPOSE).initializers
    stubs: dict[str, dict[str, Any]] = {
        "numpy.lib.arraysetops": {"isin": np.isin},
        "jax._src.numpy.lax_numpy": {"ndarray": jax.Array, "split": jnp.split},
    }
    with contextlib.ExitStack() as stack:
        for name, values in stubs.items():
            stub = types.ModuleType(name)
            vars(stub).update(values)
            old = sys.modules.get(name)
            sys.modules[name] = stub
            stack.callback(_put_back, name, old)
        for name in _REMOVED:
            stack.enter_context(mock.patch.object(jax, name, getattr(jax.tree_util, name), create=True))
        for module in ("flax.linen.linear", "flax.linen.normalization"):
            for name in ("zeros", "ones"):
                owner, value = importlib.import_module(module), getattr(initializers, name)
                stack.enter_context(mock.patch.object(owner, name, value, create=True))
        yield


def _put_back(name: str, module: types.ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module
