"""Flatten and unflatten of a class with 50 fields, against `jax.tree_util.register_dataclass`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

import elegy as eg
from benchmarks.options import Options
from benchmarks.pairs import Row, measure

GOAL = 1.2
FIELDS = [f"field_{i}" for i in range(50)]
ROUNDS = 2_000

Ours = type("Ours", (eg.Pytree,), {"__annotations__": dict.fromkeys(FIELDS, float)})
Theirs = jax.tree_util.register_dataclass(
    dataclasses.make_dataclass("Theirs", [(name, float) for name in FIELDS]), FIELDS, []
)


def there_and_back(tree: Any) -> None:
    for _ in range(ROUNDS):
        leaves, treedef = jax.tree.flatten(tree)
        jax.tree.unflatten(treedef, leaves)


def run(options: Options) -> list[Row]:
    """One line."""
    values = [float(i) for i in range(len(FIELDS))]
    ours, theirs = Ours(*values), Theirs(*values)
    return [
        measure(
            "Pytree of 50 fields, flatten + unflatten",
            lambda: there_and_back(ours),
            lambda: there_and_back(theirs),
            pairs=options.repeats,
            per=ROUNDS,
            other="register_dataclass",
            unit="us",
            goal=GOAL,
        )
    ]
