"""Weights of other programs: loaded into any module by a table of names, and saved back by the same table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.adapters.resolve import resolve
from elegy.adapters.variables import nest, paths
from elegy.checkpoint.leaves import named_leaves
from elegy.checkpoint.name_table import Axes, Names, NameTable
from elegy.checkpoint.weight_files import read_weights
from elegy.checkpoint.weights import save_safetensors
from elegy.distributed import collect, is_first, together
from elegy.errors import CheckpointError
from elegy.flat import eval_shape
from elegy.lazy import is_instance_of
from elegy.module import ElegyModule
from elegy.module.averaging import Weights, with_weights
from elegy.module.layers import structs
from elegy.trainer import Trainer
from elegy.trainer.saving.weights import flat_weights
from elegy.types import PyTree

__all__ = ["load", "save"]


def load(
    source: str | os.PathLike[str] | Mapping[str, Any],
    module: Any,
    inputs: PyTree = None,
    *,
    names: Names | None = None,
    transpose: Axes | None = None,
    ignore: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    cast: bool = False,
    seed: int = 42,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Any:
    """Reads the weights of a module, and checks that each has exactly one source.

    Paths are those of `trainer.save_weights`: `params/Dense_0/kernel`, `batch_stats/BatchNorm_0/mean`.

    Args:
        source: a safetensors file, the `.safetensors.index.json` of a model in shards, a directory with either, a model
            on the Hugging Face Hub (`hf://organisation/name[@revision][/file]`), or a dict of arrays by name.
        module: what a Trainer accepts, or nested dicts of arrays.
        inputs: one batch of inputs, arrays or `jax.ShapeDtypeStruct`, from which the module makes its parameters. Not
            needed for a module that has them: a state, NNX, Equinox, dicts of arrays.
        names: pattern of names in the source -> pattern of paths, such as `{"fc.*.weight": "params/Dense_*/kernel"}`;
            the first match is used. Each `*` stands for any characters, as few as possible, and those take the place of
            the `*` of the path; in names with dots, their dots become slashes. Or a function from a name to a path.
            None if names and paths are equal.
        transpose: pattern of paths -> the order of axes for `numpy.transpose`, such as `{"*/kernel": (1, 0)}`; the
            first match is used.
        ignore: patterns of names without a place in the module, such as `"*.num_batches_tracked"`.
        keep: patterns of paths that the source does not have; they keep the module's initial values.
        cast: True to convert floats to the dtype of the module, and integers if they stay equal.
        seed: makes the initial values of `keep`.
        cache_dir: the cache of the Hub; the default is that of `huggingface-hub`.
        local_files_only: True to use the cache of the Hub alone, without a network.

    Returns:
        The variables for `Trainer(module, variables=...)` and `LoRA(..., variables=...)`, in the form of the module's
        library. For Equinox and Penzai a model; for Keras, a `LoRA` and an ElegyModule a state, `Trainer(state, ...)`;
        for dicts of arrays, the same dicts.

    Raises:
        CheckpointError: listing everything that does not fit: names and paths that are left over, patterns that are
            never used, paths with two sources, other shapes and dtypes; or if a file is missing or damaged.
        TypeError: if an argument has the wrong type, or the module needs `inputs`.
        ImportError: if safetensors or huggingface-hub is not installed.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> source = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}
        >>> names = {"fc.weight": "params/kernel", "fc.bias": "params/bias"}
        >>> variables = load(source, nn.Dense(2), np.ones((4, 3)), names=names, transpose={"*/kernel": (1, 0)})
        >>> jax.tree.map(np.shape, variables)
        {'params': {'bias': (2,), 'kernel': (3, 2)}}
    """
    table = NameTable(names, transpose, ignore, keep)
    target = _target(module, inputs, seed, real=bool(table.keep))
    given = source
    if not isinstance(given, Mapping):
        given = read_weights(given, cache_dir=cache_dir, local_files_only=local_files_only)
    weights = _flat(target)
    values = table.load(given, weights, cast)
    leaves = named_leaves(target)
    for path in weights:
        value = values.get(path, leaves[path])
        # JAX has no 64 bits by default, so arrays of a tree that NumPy made stay with NumPy.
        leaves[path] = value if isinstance(leaves[path], np.ndarray) else jnp.asarray(value)
    loaded = jax.tree.unflatten(jax.tree.structure(target), leaves.values())
    if not isinstance(loaded, ElegyModule):
        return loaded
    result = loaded if isinstance(module, ElegyModule) else _variables(loaded)
    if isinstance(result, ElegyModule) and result.key is None:  # with a key it is a state, which nothing initialises
        return result.replace(key=jax.random.key(seed))
    return result


def save(
    path: str | os.PathLike[str],
    module: Any,
    *,
    names: Names | None = None,
    transpose: Axes | None = None,
    ignore: str | Sequence[str] = (),
    keep: str | Sequence[str] = (),
    weights: Weights = "trained",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes weights to a safetensors file in the names and axes of another program, by the table of `load`.

    Args:
        path: the file; an existing one is replaced.
        module: a Trainer, its state, or a tree of arrays. The updates of a `LoRA` are merged by
            `trainer.state.merge()`.
        names: as for `load`, a dict: its patterns are used from path to name.
        transpose: as for `load`; the inverse order is used.
        ignore: as for `load`, so that one table serves both; nothing is written for it.
        keep: patterns of paths that are not written.
        weights: of a Trainer or its state, which parameters to write; as for `Trainer.evaluate`.
        metadata: strings for the header of the file, such as `{"format": "pt"}`, which Transformers asks for.

    Raises:
        CheckpointError: listing the weights that no pattern leads to; or if the file cannot be written, or there are
            no weights yet.
        TypeError: if `names` is a function, or another argument has the wrong type.
        ImportError: if safetensors is not installed.
    """
    table = NameTable(names, transpose, ignore, keep)
    state = module.state if isinstance(module, Trainer) else module
    if isinstance(state, ElegyModule):
        if not jax.tree.leaves(state.get_params()):
            raise CheckpointError("there are no weights to save yet: fit, or call init_on_batch first.")
        state = with_weights(state, weights)
    flat = collect(_flat(state))
    out = table.save(flat)
    together(lambda: save_safetensors(path, out, metadata) if is_first() else None, f"writing {path}")


def _flat(target: Any) -> dict[str, Any]:
    return flat_weights(target) if isinstance(target, ElegyModule) else named_leaves(target)


def _target(module: Any, inputs: PyTree, seed: int, real: bool) -> Any:
    """Returns the state or the tree with a place for each weight: arrays if `real`, otherwise their shapes."""
    if isinstance(module, Trainer):
        raise TypeError(
            "load takes a module, not a Trainer: `trainer.state = eg.weights.load(path, trainer.state, ...)`."
        )
    if isinstance(module, Mapping):
        return module
    state = resolve(module)
    if state.key is not None:
        return state
    has_values = any(
        is_instance_of(state, f"elegy.adapters.{home}", name)
        for home, name in (("nnx", "NNXModule"), ("equinox", "EquinoxModule"), ("treex", "TreexModule"))
    )
    if inputs is None and not has_values:
        raise TypeError(
            f"{type(module).__name__} makes its parameters from a batch of inputs, whose shapes are not known: pass "
            "`inputs`, arrays or `jax.ShapeDtypeStruct`."
        )
    key = jax.random.key(seed)
    if real:
        return state.init(key, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structs(inputs)))
    return eval_shape(state.init, key, structs(inputs))


def _variables(state: ElegyModule) -> Any:
    """Returns a state in the form of the module's library; the state itself if that has no form with all weights."""
    own: Any = state
    if is_instance_of(state, "elegy.adapters.linen", "LinenModule"):
        return own.variables
    if is_instance_of(state, "elegy.adapters.haiku", "HaikuModule"):
        stateful = is_instance_of(own.transformed, "haiku", "TransformedWithState")
        return (own.params, own.haiku_state) if stateful else own.params
    if is_instance_of(state, "elegy.adapters.functional", "FunctionalModule"):
        return own.variables
    if is_instance_of(state, "elegy.adapters.nnx", "NNXModule"):
        return nest({k: v for part in (own.params, own.batch_stats, own.variables) for k, v in paths(part).items()})
    return own.to_module() if hasattr(own, "to_module") else own
