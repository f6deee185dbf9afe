"""The weights of a state alone: by path, from and to files, and in the forms of other libraries."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from elegy.adapters.lora import LoRAModule
from elegy.checkpoint import fill, load_safetensors, rename, save_safetensors, select, store
from elegy.checkpoint.address import path_of
from elegy.checkpoint.directory import opened
from elegy.checkpoint.leaves import named_leaves
from elegy.checkpoint.manifest import read_manifest
from elegy.distributed import collect, is_first, together
from elegy.errors import CheckpointError
from elegy.lazy import is_instance_of
from elegy.metrics import Metric
from elegy.module.averaging import Weights, with_weights
from elegy.module.freezing import optimizer_params
from elegy.module.precision import wide_params
from elegy.trainer.saving import given_weights
from elegy.trainer.session import Session
from elegy.types import PyTree

Rename = Mapping[str, str] | Callable[[str], str]

KIND = "weights"
_SUFFIX = ".safetensors"
_NO_WEIGHTS = ("key", "optimizer", "losses_and_metrics", "averaged_params", "dynamic_loss_scale", "_logs")


def flat_weights(state: Any) -> dict[str, Any]:
    """The arrays of a state by path, without what belongs to the run: keys, optimizer, metrics, logs."""
    return {path: leaf for path, leaf in named_leaves(state).items() if _is_weight(state, path, leaf)}


def _is_weight(state: Any, path: str, leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return not (_is_of_run(state, path) or (dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)))


def _is_of_run(state: Any, path: str) -> bool:
    """True if a path is within a field of a state that belongs to a run: keys, optimizer, metrics, logs."""
    field = path.partition("/")[0]
    return field in _NO_WEIGHTS or isinstance(getattr(state, field, None), Metric)


def variables(state: Any) -> PyTree:
    """The weights in the form that the module's own library takes them; those of a `LoRA` are merged."""
    state = state.merge() if isinstance(state, LoRAModule) else state
    if is_instance_of(state, "elegy.adapters.linen", "LinenModule"):
        return state.variables
    if is_instance_of(state, "elegy.adapters.haiku", "HaikuModule"):
        stateful = is_instance_of(state.transformed, "haiku", "TransformedWithState")
        return (state.params, state.haiku_state) if stateful else state.params
    return {
        name: getattr(state, name) for name in dict.fromkeys(path.partition("/")[0] for path in flat_weights(state))
    }


def save(session: Session, path: str | os.PathLike[str], which: Weights = "trained") -> None:
    """Writes the weights: to a safetensors file by its suffix, otherwise to a checkpoint directory."""
    session.check_initialized("are no weights")
    flat = flat_weights(with_weights(session.state, which))
    if Path(path).suffix == _SUFFIX:
        flat = collect(flat)
        together(lambda: save_safetensors(path, flat) if is_first() else None, f"writing {path}")
    else:
        store.save(path, flat, {"module": type(session.state).__name__}, kind=KIND)


def load(session: Session, source: Any, *, prefix: str | None, renamed: Rename | None, strict: bool) -> None:
    """Reads weights now, and puts them into the state: at once, or when it exists."""
    if not isinstance(prefix, str | None):
        raise TypeError(f"prefix must be one path, such as 'params/encoder', not {prefix!r}. Load each with a call.")
    flat, saved = _read(source) if isinstance(source, (str, os.PathLike)) else (None, None)
    where = "the given tree" if flat is None else os.fspath(source)
    if flat is not None:
        _chosen(flat, prefix, renamed)  # what lies in the source is known before a state exists

    def apply() -> None:
        state = session.state
        if saved is not None and (own := state.split_given()[1]) is not None:
            given_weights.check_equal(given_weights.digest_of(session, own), saved, source, strict=strict)
        weights = _in_fields(state, source) if flat is None else flat
        state = replaced(state, weights, prefix=prefix, renamed=renamed, strict=strict, where=where)
        if session.step == 0 and state.optimizer is not None:
            state = state.replace(optimizer=state.optimizer.init(optimizer_params(state)))
        if state.averaged_params is not None:
            state = state.replace(averaged_params=state.averaged_params.begin(wide_params(state)))
        session.state = state

    if session.initialized:
        apply()
    else:
        session.pending = session.pending.with_weights(apply)


def replaced(
    state: Any, flat: Mapping[str, Any], *, prefix: str | None, renamed: Rename | None, strict: bool, where: str
) -> Any:
    """Puts weights into a state.

    Args:
        state: the state.
        flat: path -> value; what belongs to a run (keys, optimizer, metrics, logs) is left aside.
        prefix: takes only what lies below this place in `flat`.
        renamed: from paths in `flat` to paths in the state.
        strict: whether each part of the state that is touched must be there as a whole, but for weights that the
            module was given, and everything in `flat` must have a place.
        where: what the weights were read from, for messages.

    Raises:
        CheckpointError: listing every mismatch by path.
    """
    flat = _chosen(flat, prefix, renamed)
    own = named_leaves(state)
    weights, optional = flat_weights(state), given_weights.paths(state)
    flat = {p: leaf for p, leaf in flat.items() if p in weights or not (p in own or _is_of_run(state, p))}
    if not flat:
        raise CheckpointError(f"there are no weights in what was given. The state has: {', '.join(weights)}.")
    places = [_moved(prefix, renamed)] if prefix is not None else list(dict.fromkeys(p.partition("/")[0] for p in flat))
    touched = {
        path: leaf
        for path, leaf in weights.items()
        if path in flat or (path not in optional and any(f"{path}/".startswith(f"{place}/") for place in places))
    }
    own.update(fill(touched, flat, strict=strict, where=where))
    return jax.tree.unflatten(jax.tree.structure(state), own.values())


def _chosen(flat: Mapping[str, Any], prefix: str | None, renamed: Rename | None) -> Mapping[str, Any]:
    """Returns what lies below the prefix, under its new names."""
    if prefix is not None:
        flat = {prefix: flat[prefix]} if prefix in flat else select(flat, prefix, keep_prefix=True)
    return flat if renamed is None else rename(flat, renamed)


def _moved(prefix: str, renamed: Rename | None) -> str:
    """Where a place lies after renaming."""
    place = prefix.rstrip("/")
    if not isinstance(renamed, Mapping):
        return place
    for old in sorted(renamed, key=len, reverse=True):
        if place == old or place.startswith(old + "/"):
            return renamed[old] + place[len(old) :]
    return place


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str | None]:
    """Reads weights by path, and the digest of those that a checkpoint lacks because its module was given them."""
    where = path_of(path)
    if where.is_file() if isinstance(where, Path) else where.name.endswith(_SUFFIX):
        try:
            return load_safetensors(path), None
        except CheckpointError as error:
            if where.name.endswith(_SUFFIX):
                raise
            raise CheckpointError(
                f"{where} is no safetensors file, and load_weights reads no other kind of file. It takes: "
                f"a `{_SUFFIX}` file; a checkpoint or a directory of them; a dict of arrays by path, such as "
                "`dict(numpy.load(file))` of an .npz file; the variables of the module's library, such as "
                "`flax.serialization.msgpack_restore(file.read_bytes())` of a msgpack file."
            ) from error
    with opened(where) as found:
        kind = read_manifest(found.directory, found.path)["kind"]
        flat, metadata = store.restore(found, None, kind=kind if kind == KIND else "trainer")
    return flat, metadata.get(given_weights.KEY)


def _in_fields(state: Any, given: PyTree) -> dict[str, Any]:
    """Variables in the form of the module's library, by the paths of the state."""
    if is_instance_of(state, "elegy.adapters.haiku", "HaikuModule") and not _by_path(given):
        from elegy.adapters.variables import split_floats

        params, rest = given if isinstance(given, tuple) else (given, None)
        batch_stats, counters = split_floats(rest)
        given = {"params": params, "batch_stats": batch_stats, "counters": counters}
    if not isinstance(given, Mapping):
        raise CheckpointError(
            f"the weights are a {type(given).__name__}: give a path, a dict of variables such as "
            '`{"params": ...}`, or a dict of arrays by path.'
        )
    flat = named_leaves(dict(given))
    if is_instance_of(state, "elegy.adapters.linen", "LinenModule") and not _flat(given):
        known = state.__dataclass_fields__
        if given and given.keys() <= dict(state.params).keys() and not given.keys() & {*known, *state.variables}:
            raise CheckpointError(
                f"the dict of weights has the parts {', '.join(map(str, given))}, which lie within the collection "
                'params: wrap it, `trainer.load_weights({"params": params})`.'
            )
        flat = {path if path.partition("/")[0] in known else f"collections/{path}": v for path, v in flat.items()}
    return flat


def _by_path(given: Any) -> bool:
    """True if arrays are given by their paths, or by the fields of the state."""
    return _flat(given) or (isinstance(given, Mapping) and any(str(key).partition("/")[0] == "params" for key in given))


def _flat(given: Any) -> bool:
    """True if arrays are given by path; the libraries' own variables are dicts of dicts."""
    return isinstance(given, Mapping) and not any(isinstance(value, Mapping) for value in given.values())
