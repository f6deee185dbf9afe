"""Every strategy against a hand-written `jit` + `NamedSharding` step with the same placement, on 1, 2, 4, 8 devices.

`python -m benchmarks.scaling [--quick] [--repeats N] [--devices N ...] [--json PATH]`. On a machine without
accelerators the devices are virtual and share its cores: ratios show the cost of a strategy, not how it scales.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

# Set before JAX starts: XLA's thread pool must have room for the collectives of eight virtual devices.
os.environ.setdefault("NPROC", "32")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.__main__ import machine, table
from benchmarks.hand_written import HandWritten
from benchmarks.ours import fit, trainer_for
from benchmarks.pairs import Row, measure
from benchmarks.works import MLP, Work
from elegy.strategies import FSDP, DataParallel, Sharded

COUNTS = (1, 2, 4, 8)
GOAL = 1.10
WORK = Work("wide MLP", functools.partial(MLP, hidden=512), (256,), rows=8_192, batch_size=256, epochs=2)
RULES = {"Dense_1/kernel": (None, "model")}


class OnMesh(HandWritten):
    """The hand-written loop over a mesh: rows divided over the axis `"data"`, the state placed by `spec`.

    Args:
        work: the workload.
        mesh: the devices.
        spec: a function from a leaf's path and the leaf to its placement.
        gathers: True to gather parameters before they are used, as fully sharded training does. Otherwise the
            partitioner may gather activations instead, which is another algorithm.
    """

    def __init__(self, work: Work, mesh: Mesh, spec: Any, *, gathers: bool = False):
        super().__init__(work)
        self.whole = NamedSharding(mesh, PartitionSpec()) if gathers else None
        state = (self.params, self.opt_state, jnp.zeros(2))
        shardings = jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(mesh, spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)),
            state,
        )
        self.params, self.opt_state, _ = jax.device_put(state, shardings)
        rows = NamedSharding(mesh, PartitionSpec("data"))
        step = jax.jit(
            self._train_step, in_shardings=(shardings, rows, rows), out_shardings=shardings, donate_argnums=0
        )
        self.train_step = lambda state, x, y: step(state, jax.device_put(x, rows), jax.device_put(y, rows))

    def _losses(self, params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return super()._losses(
            params if self.whole is None else jax.lax.with_sharding_constraint(params, self.whole), x, y
        )


def everywhere(path: str, leaf: Any) -> PartitionSpec:
    """Replicates every leaf."""
    return PartitionSpec()


def in_parts(count: int, path: str, leaf: Any) -> PartitionSpec:
    """Divides large arrays along their largest dimension (fully sharded)."""
    if leaf.size < 1024:
        return PartitionSpec()
    dimensions: list[str | None] = [None] * leaf.ndim
    sizes = [n if n % count == 0 else 0 for n in leaf.shape]
    if max(sizes):
        dimensions[int(np.argmax(sizes))] = "data"
    return PartitionSpec(*dimensions)


def by_rules(path: str, leaf: Any) -> PartitionSpec:
    """Divides the first layer's columns (tensor parallel)."""
    return PartitionSpec(None, "model") if path.endswith("Dense_1/kernel") else PartitionSpec()


def placements(count: int) -> list[tuple[str, Any, dict[str, int], Any]]:
    """Returns name, strategy, mesh and hand-written placement of each comparison on `count` devices."""
    flat, devices = {"data": count}, jax.devices()[:count]
    found: list[tuple[str, Any, dict[str, int], Any]] = [
        ("data_parallel", DataParallel(devices), flat, everywhere),
        ("sharded", Sharded(flat), flat, everywhere),
        ("fsdp", FSDP(flat), flat, functools.partial(in_parts, count)),
    ]
    if count == 1:
        return [("jit", "jit", flat, everywhere), *found]
    square = {"data": count // 2, "model": 2}
    return [*found, ("sharded, rules", Sharded(square, rules=RULES), square, by_rules)]


def run(pairs: int, counts: tuple[int, ...], work: Work) -> list[Row]:
    """One line for each strategy and number of devices."""
    data = work.data()
    rows = []
    for count in counts:
        for name, strategy, sizes, spec in placements(count):
            auto = (AxisType.Auto,) * len(sizes)
            devices = jax.devices()[:count]
            mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto, devices=devices)
            check_same(work, data, strategy, mesh, spec)
            loop = OnMesh(work, mesh, spec, gathers=name == "fsdp")
            trainer = trainer_for(work, strategy=strategy)
            rows.append(
                measure(
                    f"{name}, {count} device{'s' if count > 1 else ''}",
                    functools.partial(fit, trainer, work, data, steps_per_execution=1),
                    functools.partial(loop.fit, *data, work.epochs),
                    pairs=pairs,
                    per=work.steps * work.epochs,
                    other="jit + NamedSharding",
                    goal=GOAL,
                )
            )
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    return rows


def check_same(work: Work, data: Any, strategy: Any, mesh: Mesh, spec: Any) -> None:
    """Raises an error if the loss curves differ: only loops that compute the same values can be compared."""
    x, y = (part[: 4 * work.batch_size] for part in data)
    history = trainer_for(work, strategy=strategy).fit(x, y, batch_size=work.batch_size, epochs=2, verbose=0).history
    curve = OnMesh(work, mesh, spec).fit(x, y, 2)
    np.testing.assert_allclose(history["loss"], [row["loss"] for row in curve], rtol=1e-4)


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less data")
    parser.add_argument("--repeats", type=int, default=7, help="pairs for each line")
    parser.add_argument("--devices", type=int, nargs="+", default=COUNTS, help="numbers of devices")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write all measured values")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(COUNTS))
    work = dataclasses.replace(WORK, rows=2_048) if arguments.quick else WORK
    counts = tuple(count for count in arguments.devices if count <= jax.device_count())
    rows = run(arguments.repeats, counts, work)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": [r.as_dict() for r in rows]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
