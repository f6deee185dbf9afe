"""Weights that a module was given, such as the base of a `LoRA`: checkpoints hold a digest in place of their values."""

from __future__ import annotations

import warnings
from typing import Any

from elegy.callers import stacklevel_of_caller
from elegy.checkpoint.digest import digest
from elegy.checkpoint.leaves import named_leaves
from elegy.errors import CheckpointError
from elegy.trainer.session import Session
from elegy.types import PyTree

KEY = "given"
"""Where the metadata of a checkpoint have the digest; None if the checkpoint holds all weights."""


def digest_of(session: Session, weights: PyTree) -> str | None:
    """Returns the digest of weights that a state was given; None for None.

    No step changes them, so it is computed once for a state that steps alone have changed.

    Args:
        session: has the state.
        weights: what `split_given` of the state returned.
    """
    if weights is None:
        return None
    version = session.buffer.version
    if session.given_digest is None or session.given_digest[0] != version:
        session.given_digest = version, digest(weights)
    return session.given_digest[1]


def paths(state: Any) -> set[str]:
    """Returns the paths of the weights that a state was given."""
    return named_leaves(state).keys() - named_leaves(state.split_given()[0]).keys()


def check_possible(state: Any, saved: str | None, module: str, where: object) -> None:
    """Checks that a checkpoint does not lack weights that the module of a state was not given.

    Args:
        state: the state.
        saved: the digest in the checkpoint.
        module: the name of the checkpoint's module.
        where: the checkpoint.

    Raises:
        CheckpointError: if it lacks them.
    """
    if saved is not None and state.split_given()[1] is None:
        raise CheckpointError(
            f"{where} does not hold the weights that its module, a {module}, was given, and the "
            f"{type(state).__name__} of this trainer was given none. Pass the same base weights: "
            "`eg.LoRA(module, ..., variables=...)`, or `Trainer(variables=...)`."
        )


def check_equal(own: str | None, saved: str, where: object, *, strict: bool) -> None:
    """Checks that the module of a trainer was given the weights that belong to a checkpoint.

    Args:
        own: the digest of the trainer's weights.
        saved: the digest of the checkpoint's weights.
        where: the checkpoint.
        strict: False to warn instead.

    Raises:
        CheckpointError: if the digests differ.
    """
    if own == saved:
        return
    message = (
        f"{where} belongs to other base weights than those that this trainer's module was given: their SHA-256 is "
        f"{saved[:16]}..., that of the trainer's is {str(own)[:16]}.... "
    )
    if strict:
        raise CheckpointError(
            message + "Pass the weights of the saved run, `eg.LoRA(module, ..., variables=...)`, under the same "
            "`precision`. With `strict=False` what was saved is put on top of the trainer's weights."
        )
    warnings.warn(message + "What was saved is put on top of the trainer's weights.", stacklevel=stacklevel_of_caller())
