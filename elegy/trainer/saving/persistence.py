"""What a trainer writes to a checkpoint, and how it takes it back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from elegy import optimizer
from elegy.callbacks import History
from elegy.callers import stacklevel_of_caller
from elegy.checkpoint import store
from elegy.checkpoint.digest import digest
from elegy.checkpoint.directory import Opened, opened
from elegy.distributed import together
from elegy.errors import CheckpointError
from elegy.loading.multihost import with_all_places, with_own_place
from elegy.module.averaging import rule_name
from elegy.module.freezing import frozen_paths
from elegy.module.logs import LogBook, empty_log
from elegy.module.precision import wide_params
from elegy.patterns import few
from elegy.trainer import checks
from elegy.trainer.nonfinite import Skipped
from elegy.trainer.saving import given_weights
from elegy.trainer.session import Session
from elegy.types import Hyperparameters, PyTree


def contents(session: Session) -> tuple[PyTree, dict[str, Any]]:
    """Everything that a checkpoint of a trainer holds: the state, and the rest in a form fit for JSON.

    Raises:
        CheckpointError: if there is no state yet, or it is ahead of the counters.
        NonFiniteError: if a step before was not finite and the trainer's policy is to act on it: no checkpoint holds
            what came after.
    """
    session.check_initialized("is no state")
    if session.run is not None and session.run.ahead:
        raise CheckpointError(
            f"the state has seen {session.run.ahead} steps more than step {session.step}, because several run in one "
            "execution: save at its last step, or declare `batch_hooks_read = 'state'` in the callback that saves, so "
            "that every step is an execution of its own."
        )
    if session.monitor.policy != "skip":
        session.monitor.settle()
    state, weights = session.state.split_given()
    kept = session.kept_states()
    logs = state._logs
    metadata = {
        "step": session.step,
        "epoch": session.epoch,
        "skipped_steps": session.monitor.count().steps,
        "skipped_by_member": [*session.monitor.skipped.by_member],
        "seed": session.seed,
        "averaging": rule_name(state),
        "frozen": frozen_paths(state),
        "config": session.config,
        "module": type(state).__name__,
        given_weights.KEY: given_weights.digest_of(session, weights),
        "history": session.history.state_dict(),
        "logs": {
            phase: {name: log.reduce for name, log in book.items()}
            for phase, book in (("train", logs.train), ("test", logs.test))
            if book is not None
        },
        "kept": {name: [*states] for name, states in kept.items()},
        "run": with_all_places(together(session.place, "asking the data for its place")),
    }
    split = {name: {key: one.split_given()[0] for key, one in states.items()} for name, states in kept.items()}
    return state.replace(_kept=split or None), metadata


def restore(
    session: Session, path: str | os.PathLike[str], *, strict: bool, hyperparameters: Hyperparameters | None
) -> None:
    """Reads a checkpoint, or the newest intact one of a directory of them; at once, or when the state exists."""
    checks.hyperparameters(hyperparameters)
    with opened(path) as found:
        metadata = store.read_metadata(found)
        if session.initialized:
            load(session, found, metadata, strict=strict, wanted=hyperparameters)
        else:
            session.pending = session.pending.with_checkpoint(
                lambda: load(session, found.path, metadata, strict=strict, wanted=hyperparameters)
            )


def load(
    session: Session,
    path: str | os.PathLike[str] | Opened,
    metadata: Mapping[str, Any],
    *,
    strict: bool = True,
    wanted: Hyperparameters | None = None,
) -> None:
    """Replaces the state and the counters by those of a checkpoint.

    The accumulators of the logs are the checkpoint's: the steps that filled them are not known yet where the
    trainer has not run.
    """
    measures = session.strategy.one_member(session.state.losses_and_metrics)
    books = session.strategy.for_members(
        {
            phase: {name: empty_log(reduce, measures) for name, reduce in names.items()}
            for phase, names in metadata["logs"].items()
        }
    )
    one = session.state.replace(_logs=LogBook())
    kept = {name: dict.fromkeys(names, one.split_given()[0]) for name, names in metadata.get("kept", {}).items()}
    target = one.replace(_logs=LogBook(train=books.get("train"), test=books.get("test")), _kept=kept or None)
    if strict:
        _check_average(metadata, rule_name(target), path.path if isinstance(path, Opened) else path)
        _check_frozen(metadata.get("frozen"), frozen_paths(target))
    state, own = _restored(session, path, target, metadata, strict)
    weights = state.split_given()[1]
    session.kept = {
        name: {key: one.with_given(weights) for key, one in states.items()}
        for name, states in (state._kept or {}).items()
    }
    state = state.replace(_kept=None)
    session.state = _with_average(_with_hyperparameters(state, target, wanted), metadata.get("averaging"))
    session.given_digest = None if own is None else (session.buffer.version, own)
    session.step, session.epoch = metadata["step"], metadata["epoch"]
    session.monitor.skipped = Skipped(metadata["skipped_steps"], tuple(metadata.get("skipped_by_member", ())))
    if session.run is None:  # a run loads its History with its other callbacks
        session.history = History()  # a snapshot of the trainer keeps the old one
        session.history.load_state_dict(metadata["history"])
    session.record = with_own_place(metadata["run"])


def _restored(
    session: Session, path: str | os.PathLike[str] | Opened, target: Any, metadata: Mapping[str, Any], strict: bool
) -> tuple[Any, str | None]:
    """Reads a state; weights that the module was given stay, and must be those of the checkpoint.

    Returns:
        The state, and the digest of the given weights.
    """
    where = path.path if isinstance(path, Opened) else path
    saved = metadata.get(given_weights.KEY)
    if strict:
        given_weights.check_possible(target, saved, metadata["module"], where)
    split, weights = target.split_given()
    own = given_weights.digest_of(session, weights)
    # Without a digest it holds all weights: its module was given none, or an older version wrote it.
    state, _ = store.restore(path, target if saved is None else split, strict=strict)
    if own is None:
        return state, None
    if saved is None:
        state, found = state.split_given()
        saved = digest(found)
    given_weights.check_equal(own, saved, where, strict=strict)
    return state.with_given(weights), own


def _check_frozen(saved: list[str] | None, now: list[str]) -> None:
    """Checks that a checkpoint, unless an older version wrote it, is of a run with the same frozen parameters.

    Raises:
        CheckpointError: if it is not.
    """
    if saved is not None and set(saved) != set(now):
        raise CheckpointError(
            f"the checkpoint is of a run whose frozen parameters were {few(saved)}, and those of the trainer are "
            f"{few(now)}. Freeze the same parameters (`Trainer(freeze=...)`, `trainer.freeze`, `trainer.unfreeze`), "
            "restore it, and then freeze others; or take the weights alone, `trainer.load_weights(path)`."
        )


def _check_average(metadata: Mapping[str, Any], now: str | None, path: object) -> None:
    """Checks that a checkpoint, unless an older version wrote it, has an average if and only if the trainer has one.

    Raises:
        CheckpointError: if it is not so.
    """
    saved = metadata.get("averaging")
    if "averaging" not in metadata or (saved is None) == (now is None):
        return
    if saved is None:
        raise CheckpointError(
            f"the checkpoint {path} has no average of the parameters, and the trainer averages them by {now}: make the "
            "trainer without `averaging`, or call `trainer.restore(path, strict=False)` before `fit`, which begins a "
            "new run from this state, with an average that starts here."
        )
    raise CheckpointError(
        f"the checkpoint {path} has an average of the parameters by {saved}, and the trainer keeps none: make the "
        f"trainer with `averaging=elegy.{saved}`, or call `trainer.restore(path, strict=False)`, which leaves the "
        "average out."
    )


def _with_average(state: Any, saved: str | None) -> Any:
    """A restored state, whose average starts anew if it was saved by another rule: its sum has other weights.

    Args:
        state: the state.
        saved: the rule of the checkpoint.

    Warns:
        UserWarning: if the rules differ.
    """
    average, rule = state.averaged_params, rule_name(state)
    if average is None or saved == rule:
        return state
    before = "no average of the parameters" if saved is None else f"an average of the parameters by {saved}"
    warnings.warn(
        f"the checkpoint has {before}, and the trainer averages by {rule}: the average starts anew from here.",
        stacklevel=stacklevel_of_caller(),
    )
    return state.replace(averaged_params=average.begin(wide_params(state)))


def _shown(path: str) -> str:
    """The name of a hyperparameter, with the group of parameters that it belongs to."""
    name, group = path.rpartition("/")[2], optimizer.group_of(path)
    return name if group is None else f"{name} of {group!r}"


def _with_hyperparameters(state: Any, before: Any, wanted: Hyperparameters | None) -> Any:
    """A restored state with the hyperparameters of the optimizer that are wanted: those saved, or those before.

    Warns:
        UserWarning: if they differ and nothing was said of which are wanted; those that were saved are used then.
    """
    if state.optimizer is None or wanted == "saved":
        return state
    new, saved = optimizer.hyperparameters(before.optimizer), optimizer.hyperparameters(state.optimizer)
    changed = {path: value for path, value in new.items() if np.any(np.asarray(value) != np.asarray(saved[path]))}
    if not changed:
        return state
    if wanted == "new":
        return state.replace(optimizer=optimizer.with_hyperparameters(state.optimizer, changed))
    values = "; ".join(
        f"{_shown(path)} is {np.asarray(saved[path])} in the checkpoint and {np.asarray(value)} in the trainer"
        for path, value in changed.items()
    )
    warnings.warn(
        f"the checkpoint's hyperparameters replace those of the optimizer: {values}. "
        "`hyperparameters='new'`, an argument of `restore` and of `fit(resume=...)`, keeps the trainer's; 'saved' "
        "takes the checkpoint's without this warning.",
        stacklevel=stacklevel_of_caller(),
    )
    return state
