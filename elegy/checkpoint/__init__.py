"""Checkpoints: written atomically, verified by checksums, and loaded without executing code."""

from elegy.checkpoint.address import Address
from elegy.checkpoint.background import AsyncSaver
from elegy.checkpoint.best import best
from elegy.checkpoint.directory import (
    find_checkpoints,
    is_intact,
    newest_intact,
    remove,
    remove_leftovers,
    verify,
)
from elegy.checkpoint.match import fill
from elegy.checkpoint.naming import checkpoint_name, checkpoint_step
from elegy.checkpoint.store import read_metadata, restore, save
from elegy.checkpoint.weights import flatten, load_safetensors, rename, save_safetensors, select
from elegy.checkpoint.whole import load, save_pickle

__all__ = [
    "Address",
    "AsyncSaver",
    "best",
    "checkpoint_name",
    "checkpoint_step",
    "fill",
    "find_checkpoints",
    "flatten",
    "is_intact",
    "load",
    "load_safetensors",
    "newest_intact",
    "read_metadata",
    "remove",
    "remove_leftovers",
    "rename",
    "restore",
    "save",
    "save_pickle",
    "save_safetensors",
    "select",
    "verify",
]
