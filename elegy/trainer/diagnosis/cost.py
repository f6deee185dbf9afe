"""What a training step costs, before it runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from elegy.data.batch import rows
from elegy.engine import costs
from elegy.engine.program import Program
from elegy.flat import make_jaxpr
from elegy.trainer.tables import bytes_text, draw


@dataclasses.dataclass(frozen=True)
class Cost:
    """The operations and the memory of one training step, for a population of all members; `print` shows a table.

    Args:
        flops: floating-point operations, over all devices, a multiply-add as two.
        parameters: the number of parameters.
        bytes: the bytes on each device while the step runs, by kind: `"parameters"`, `"optimizer"` (its state),
            `"other state"` (batch statistics, metrics, averages, the key), `"batch"`, `"temporaries"` (activations,
            gradients, and what the compiler needs besides), `"outputs"` (results that take no buffer of the old state).
        batch_size: the rows of the batch, over all devices.

    Example:
        >>> cost = Cost(2e9, 10, {"parameters": 40, "temporaries": 2000}, 32)
        >>> cost.peak_bytes
        2040
        >>> print(cost)
        A training step with 32 rows: 2.000 GFLOP, 10 parameters
        ┌─────────────┬──────────────────┐
        │ Kind        │ Bytes per device │
        ├─────────────┼──────────────────┤
        │ parameters  │             40 B │
        │ temporaries │           2.0 KB │
        ├─────────────┼──────────────────┤
        │ peak        │           2.0 KB │
        └─────────────┴──────────────────┘
    """

    flops: float
    parameters: int
    bytes: Mapping[str, int]
    batch_size: int

    @property
    def peak_bytes(self) -> int:
        """The most bytes that the step takes on a device."""
        return sum(self.bytes.values())

    def __str__(self) -> str:
        """A table of the bytes by kind."""
        title = f"A training step with {self.batch_size:,} rows: {_flops_text(self.flops)}, "
        table = draw(
            ("Kind", "Bytes per device"),
            [(kind, bytes_text(count)) for kind, count in self.bytes.items()],
            ("peak", bytes_text(self.peak_bytes)),
        )
        return f"{title}{self.parameters:,} parameters\n{table.rstrip()}"


def cost_of(program: Program) -> Cost:
    """Compiles a traced training step and reads the compiler's analysis; see `Trainer.cost`.

    Args:
        program: the traced step.
    """
    state, place = program.state, program.strategy.placed_struct
    kinds = _kinds(state)
    leaves = jax.tree.leaves(place(state, "state"))
    found: dict[str, int] = dict.fromkeys(("parameters", "optimizer", "other state"), 0)
    for kind, leaf in zip(kinds, leaves, strict=True):
        found[kind] += costs.bytes_per_device(leaf)
    found["batch"] = costs.bytes_per_device(place(program.batch, "batch"))
    memory: Any = costs.lower(program).compile().memory_analysis()
    found["temporaries"] = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    found["outputs"] = memory.output_size_in_bytes - memory.alias_size_in_bytes
    params = [leaf for kind, leaf in zip(kinds, leaves, strict=True) if kind == "parameters"]
    count = sum(math.prod(leaf.shape) for leaf in params)
    return Cost(program.flops, count, found, rows(program.batch))


def _kinds(state: Any) -> list[str]:
    """The kind of each leaf of a state."""
    closed, _ = make_jaxpr(lambda state: state.get_params(), state)
    optimizer = {id(leaf) for leaf in jax.tree.leaves(state.optimizer)}
    params = set(closed.jaxpr.outvars)
    return [
        "optimizer" if id(leaf) in optimizer else "parameters" if variable in params else "other state"
        for variable, leaf in zip(closed.jaxpr.invars, jax.tree.leaves(state), strict=True)
    ]


def _flops_text(count: float) -> str:
    """Writes a number of operations with its unit.

    Example:
        >>> _flops_text(12.0), _flops_text(2.5e12)
        ('12 FLOP', '2.500 TFLOP')
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3f} {unit}FLOP"
    return f"{count:.0f} FLOP"
