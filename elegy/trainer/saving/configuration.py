"""What a run is made of, for loggers: arguments, module, optimizer, sizes, versions."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import jax
import optax

from elegy.checkpoint.store import json_problems
from elegy.module.averaging import rule_name
from elegy.module.freezing import frozen_paths
from elegy.trainer.session import Session

_LIBRARIES = ("elegy", "jax", "jaxlib", "optax", "numpy", "flax", "dm-haiku", "equinox")
_LONGEST = 2000

_COMMIT_SECONDS = 10.0
"""Git takes milliseconds, so that loggers of a run, and short runs after one another, share what it says."""


def checked_config(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Copies the `config` of a trainer.

    Raises:
        TypeError: if it is not a mapping of JSON values.
    """
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a dict of names and JSON values, not {config!r}.")
    values = copy.deepcopy(dict(config))
    if problems := json_problems(values, "config"):
        raise TypeError("config must hold JSON values, as checkpoints do:\n  " + "\n  ".join(problems))
    return values


def configuration(session: Session, module_name: str) -> dict[str, Any]:
    """Returns the configuration; see `Trainer.configuration`.

    Args:
        session: the session of the trainer.
        module_name: the name of the module's class.
    """
    commit = _commit(int(time.monotonic() / _COMMIT_SECONDS))
    found = {"trainer": _trainer(session, module_name), "versions": {**_versions(), "git_commit": commit}}
    if session.config is not None:
        found["config"] = dict(session.config)
    run = session.run
    if run is not None:
        found["fit"] = {f.name: _plain(getattr(run.config, f.name)) for f in dataclasses.fields(run.config)}
        loader = run.loader
        found["data"] = {
            "examples": None if loader.plan is None else loader.plan.size,
            "batch_size": loader.batch_size,
            "steps_per_epoch": loader.steps,
            "evaluations": {
                one.prefix.removesuffix("_"): {"every": repr(one.every), "steps": one.plan.loader.steps}
                for one in run.schedule.evaluations
            },
        }
    return found


def _trainer(session: Session, module_name: str) -> dict[str, Any]:
    # The state's structure is enough: handing out the state itself would cost the next step a copy.
    state = session.buffer.struct if session.initialized else session.buffer.get()
    parts = state.losses_and_metrics
    metrics = None if parts is None else parts.metrics
    found: dict[str, Any] = {
        "module": module_name,
        "losses": session.loss_names(),
        "metrics": [] if metrics is None else list(metrics.names),
        "seed": session.seed,
        "strategy": repr(session.strategy),
        "nonfinite": session.monitor.policy,
        "accumulate": _plain(session.microbatches.given),
        "precision": "float32" if state._precision is None else repr(state._precision),
        "averaging": rule_name(state),
    }
    if session.initialized:
        params = jax.tree.leaves(state.get_params())
        found["parameters"] = sum(math.prod(leaf.shape) for leaf in params)
        found["dtypes"] = sorted({str(leaf.dtype) for leaf in params})
        found["frozen"] = frozen_paths(state)
        if state.optimizer is not None:
            found["optimizer"] = _states(state.optimizer.state)
    return found


def _states(state: Any) -> list[str]:
    """The classes of the states of an Optax transformation, which name its parts."""
    names: list[str] = []

    def visit(node: Any) -> bool:
        if hasattr(node, "_fields") and not isinstance(node, optax.MaskedNode):  # the place of a leaf, not a part
            names.append(type(node).__name__.removesuffix("State"))
        return False

    jax.tree.flatten(state, is_leaf=visit)
    return names


def _versions() -> dict[str, Any]:
    devices: list[Any] = jax.devices()
    found: dict[str, Any] = {"python": platform.python_version(), **_libraries()}
    found |= {"platform": devices[0].platform, "device": devices[0].device_kind, "devices": len(devices)}
    return found | {"processes": jax.process_count()}


@functools.cache
def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.lru_cache(maxsize=1)
def _commit(period: int) -> str | None:
    """The Git commit of the working directory, with a plus sign if files were changed since; None without one.

    Args:
        period: a number that changes when Git is to be asked again.
    """
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _plain(value: Any) -> Any:
    """A value that JSON can express; the beginning of the representation of all else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)[:_LONGEST]
