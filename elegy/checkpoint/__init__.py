"""Checkpoints: complete, verified, and loaded without executing anything."""

from elegy.checkpoint.directory import (
    checkpoint_name,
    checkpoint_step,
    find_checkpoints,
    newest_intact,
    remove,
    remove_leftovers,
)
from elegy.checkpoint.manifest import is_intact, verify
from elegy.checkpoint.match import fill
from elegy.checkpoint.store import read_metadata, restore, save

__all__ = [
    "checkpoint_name",
    "checkpoint_step",
    "fill",
    "find_checkpoints",
    "is_intact",
    "newest_intact",
    "read_metadata",
    "remove",
    "remove_leftovers",
    "restore",
    "save",
    "verify",
]
