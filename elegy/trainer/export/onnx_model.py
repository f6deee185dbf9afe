"""The prediction step as an ONNX model, which is compared with the step before it is written."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from elegy.checkpoint.address import local_path
from elegy.checkpoint.local import replace_file
from elegy.errors import CheckpointError
from elegy.jaxprs import without_dead_code
from elegy.lazy import require
from elegy.strategies.strategy import struct_of
from elegy.trainer.export.exported import prediction, symbolic_batch, tensor_name
from elegy.types import PyTree

_PURPOSE = "exporting an ONNX model"
_ROWS = (1, 3)


def export_onnx(state: Any, path: str | Path, inputs: PyTree) -> None:
    """Writes a state's prediction step as an ONNX model, its batch size free.

    Args:
        state: the state, which becomes part of the model.
        path: the file.
        inputs: one batch of inputs, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        CheckpointError: if jax2onnx cannot convert the step, the outputs of the model in onnxruntime differ from those
            of the step, or the file cannot be written.
        ImportError: if jax2onnx or onnxruntime is not installed.
    """
    jax2onnx, runtime = require("jax2onnx", _PURPOSE), require("onnxruntime", _PURPOSE)
    symbolic, step = symbolic_batch(inputs), prediction(state)
    found, treedef = jax.tree_util.tree_flatten_with_path(symbolic)
    names: dict[str, list[str]] = {"inputs": [tensor_name(where, "inputs") for where, _ in found], "outputs": []}

    def function(*leaves: jax.Array) -> list[Any]:
        # A new function for each call: jax2onnx replaces functions of JAX, and JAX keeps traces by function.
        def outputs_of(*leaves: jax.Array) -> list[Any]:
            outputs = jax.tree_util.tree_leaves_with_path(step(jax.tree.unflatten(treedef, leaves)))
            names["outputs"] = [tensor_name(where, "outputs") for where, _ in outputs]
            return [leaf for _, leaf in outputs]

        # jax2onnx converts equations that nothing reads, and cannot convert the keys of a dropout that is off.
        return jaxpr_as_fun(without_dead_code(jax.make_jaxpr(outputs_of)(*leaves)))(*leaves)

    try:
        jax.eval_shape(function, *(leaf for _, leaf in found))
        with _silent():
            model = jax2onnx.to_onnx(
                function,
                [leaf for _, leaf in found],
                input_names=_unique(names["inputs"], ()),
                output_names=_unique(names["outputs"], names["inputs"]),
                enable_double_precision=jax.config.jax_enable_x64,
            )
        data = model.SerializeToString()
        problems = _compared(runtime, data, function, jax.tree.leaves(inputs))
    except Exception as error:
        raise CheckpointError(
            f"{type(state).__name__}'s prediction step cannot be exported as an ONNX model: {error}\n`trainer.export` "
            "writes StableHLO, which has all operations of JAX."
        ) from error
    if problems:
        raise CheckpointError(
            f"the ONNX model that jax2onnx made from {type(state).__name__}'s prediction step computes something else, "
            "so it was not written:\n  " + "\n  ".join(problems)
        )
    replace_file(local_path(path), data)


def _compared(runtime: Any, data: bytes, function: Callable[..., list[Any]], inputs: list[Any]) -> list[str]:
    """Runs the model and the step on batches of several sizes, and returns how their outputs differ."""
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()], [one.name for one in session.get_outputs()]
    problems = []
    for rows in _ROWS:
        given = [_rows(leaf, rows) for leaf in inputs]
        with jax.default_matmul_precision("highest"):
            wanted = function(*map(jnp.asarray, given))
        got = session.run(None, dict(zip(names[0], given, strict=True)))
        for name, one, other in zip(names[1], got, wanted, strict=True):
            value = np.asarray(other)
            close = one.shape == value.shape and np.allclose(
                one.astype(complex), value.astype(complex), rtol=1e-2, atol=1e-3, equal_nan=True
            )
            if not close:
                problems.append(f"{name}, for {rows} rows: {one.dtype}{list(one.shape)}, not equal to the step's")
    return problems


def _rows(leaf: Any, rows: int) -> np.ndarray:
    """Returns so many rows of an input, repeated where it has fewer; zeros where only its shape is known."""
    struct = struct_of(leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct) or not struct.shape[0]:
        return np.zeros((rows, *struct.shape[1:]), struct.dtype)
    return np.resize(np.asarray(leaf, struct.dtype)[:rows], (rows, *struct.shape[1:]))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what jax2onnx prints, logs and warns about its own plugins from the user."""
    logger = logging.getLogger("jax2onnx")
    disabled, logger.disabled = logger.disabled, True
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logger.disabled = disabled


def _unique(names: list[str], taken: Any) -> list[str]:
    """Names of tensors are unique in a model, inputs and outputs together."""
    return [f"{name}_out" if name in taken else name for name in names]
