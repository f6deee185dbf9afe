"""The prediction step as a file that runs without this library and without the user's classes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from elegy.adapters.lora import LoRAModule
from elegy.checkpoint.address import local_path
from elegy.checkpoint.local import replace_file
from elegy.engine.keys import key_impls, unwrap_keys, wrap_keys
from elegy.errors import CheckpointError
from elegy.lazy import require
from elegy.names import array_name, path_name
from elegy.strategies.strategy import struct_of, to_host
from elegy.types import PyTree

FUNCTION = "pred_step.jax_export"
"""The file that holds the function."""

MANIFEST = "export.json"
"""The file that says what the function takes and gives."""

FORMAT = 1


def export(state: Any, path: str | Path, inputs: PyTree, platforms: str | Sequence[str] | None) -> None:
    """Writes a state's prediction step to the directory `path`.

    Args:
        state: the state, which becomes part of the function.
        path: a directory; files of an earlier export in it are replaced.
        inputs: one batch of inputs (arrays or `jax.ShapeDtypeStruct`).
        platforms: for which platform or platforms; `None` for the one at hand.

    Raises:
        CheckpointError: if the step cannot be traced for every batch size, its outputs cannot be described without
            the user's classes, or the files cannot be written.
        ImportError: if flatbuffers is not installed.
    """
    require("flatbuffers", "exporting the prediction step")
    symbolic = symbolic_batch(inputs)
    function = jax.jit(prediction(state))
    names = (platforms,) if isinstance(platforms, str) else platforms
    try:
        exported = jax_export.export(function, platforms=None if names is None else tuple(names))(symbolic)
    except Exception as error:
        raise CheckpointError(
            f"{type(state).__name__}'s prediction step cannot be exported for every batch size: {error}\nThe number of "
            "rows is a symbol here: write `x.shape[0]` in place of `len(x)`, `x.reshape(x.shape[0], -1)` in place of a "
            "fixed number, and no Python branches or loops over it."
        ) from error
    try:
        data = bytes(exported.serialize())
    except ValueError as error:
        raise CheckpointError(
            f"the inputs or outputs of {type(state).__name__}'s prediction step hold containers that only your program "
            f"knows: {error}. Return dicts, lists and tuples, or register yours with "
            "`jax.export.register_pytree_node_serialization`."
        ) from error
    folder = local_path(path)
    replace_file(folder / FUNCTION, data)
    manifest = {
        "format": FORMAT,
        "function": FUNCTION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "module": type(state).__name__,
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "platforms": list(exported.platforms),
        "inputs": _described(symbolic),
        "outputs": _described(jax.tree.unflatten(exported.out_tree, exported.out_avals)),
    }
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")


def export_saved_model(state: Any, path: str | Path, inputs: PyTree) -> None:
    """Writes a state's prediction step as a TensorFlow SavedModel, its batch size free.

    Args:
        state: as for `export`.
        path: the SavedModel's directory.
        inputs: as for `export`.

    Raises:
        CheckpointError: if the step cannot be converted, or TensorFlow is too old to read what JAX writes.
        ImportError: if TensorFlow is not installed.
    """
    tf = require("tensorflow", "exporting a SavedModel")
    jax2tf = require("jax.experimental.jax2tf", "exporting a SavedModel")
    structs = _batch_structs(inputs)
    polymorphic = jax.tree.map(lambda leaf: f"({', '.join(('b', *map(str, leaf.shape[1:])))})", structs)
    signature = jax.tree_util.tree_map_with_path(
        lambda where, leaf: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype.name, name=tensor_name(where, "inputs")),
        structs,
    )
    module = tf.Module()
    try:
        converted = jax2tf.convert(prediction(state), polymorphic_shapes=[polymorphic], with_gradient=False)
        module.f = tf.function(converted, autograph=False, input_signature=[signature])
        _check_readable(tf, module.f, structs)
        tf.saved_model.save(module, os.fspath(local_path(path)))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{type(state).__name__}'s prediction step cannot be exported as a SavedModel: {error}"
        ) from error


def _check_readable(tf: Any, function: Any, structs: PyTree) -> None:
    """Runs the converted function on one row of zeros: TensorFlow first reads the program of JAX when it runs it."""
    try:
        function(jax.tree.map(lambda leaf: tf.zeros((1, *leaf.shape[1:]), leaf.dtype.name), structs))
    except tf.errors.OpError as error:
        # Other errors, such as a program for a GPU that TensorFlow does not see here, say nothing of the machine that
        # will load the SavedModel.
        if "deserialize" in str(error):
            raise CheckpointError(
                f"TensorFlow {tf.__version__} cannot read what JAX {jax.__version__} exports: its version of StableHLO "
                "is older. Install a newer TensorFlow, or export with an older JAX (JAX 0.10.2 works with TensorFlow "
                "2.21). `trainer.export` needs no TensorFlow."
            ) from error


def prediction(state: Any) -> Callable[[PyTree], PyTree]:
    """The prediction step as a function of the inputs alone; the state is part of it, as NumPy arrays.

    The updates of a `LoRA` are added to its weights.
    """
    state = state.merge() if isinstance(state, LoRAModule) else state
    leaves, treedef = jax.tree.flatten(state)
    impls = key_impls(leaves)
    host = to_host(unwrap_keys(leaves, impls))

    def pred_step(inputs: PyTree) -> PyTree:
        values = wrap_keys([jnp.asarray(leaf) for leaf in host], impls)
        return jax.tree.unflatten(treedef, values).pred_step(inputs, jnp.zeros((), jnp.int32))[0]

    return pred_step


def symbolic_batch(inputs: PyTree) -> PyTree:
    """The shapes of a batch of inputs with the symbol `b` for the number of rows.

    Raises:
        CheckpointError: if there is no array, or one has no axis of examples.

    Example:
        >>> symbolic_batch(jax.ShapeDtypeStruct((8, 3), jnp.float32)).shape
        (b, 3)
    """
    (b,) = jax_export.symbolic_shape("b")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((b, *leaf.shape[1:]), leaf.dtype), _batch_structs(inputs))


def _batch_structs(inputs: PyTree) -> PyTree:
    structs = jax.tree.map(struct_of, inputs)
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(structs)}
    if not named or any(not leaf.shape for leaf in named.values()):
        found = ", ".join(f"{name}: {array_name(leaf)}" for name, leaf in named.items())
        raise CheckpointError(
            f"the inputs to export must be arrays with one row an example, but they are {found or 'no arrays'}."
        )
    return structs


def _described(tree: PyTree) -> dict[str, Any]:
    return {
        path_name(path): {"dtype": str(leaf.dtype), "shape": [d if isinstance(d, int) else str(d) for d in leaf.shape]}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def tensor_name(path: Any, root: str) -> str:
    """The name of a leaf in the files of other libraries; `root` if the leaf is the whole tree."""
    return path_name(path).replace("/", "_").replace("(root)", root)
