"""`import elegy`, and a first Trainer, against `import jax, optax, flax`, in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.options import Options
from benchmarks.pairs import Row

GOAL = 1.15
BASE = "import jax, optax, flax.linen as nn"
MAKE = (
    "import elegy as eg; eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), eg.metrics.MeanAbsoluteError(), "
    "optax.sgd(0.1))"
)


def run(options: Options) -> list[Row]:
    """One line for the import alone, and one with a Trainer, which imports most of the package.

    Both begin with a backend of JAX, which a Trainer with a metric starts, because the metric has arrays.
    """
    start = f"{BASE}; jax.numpy.zeros(())"
    lines = {"import elegy": "import elegy", "import elegy, first Trainer": MAKE}
    rows = []
    for name, statement in lines.items():
        import_time(f"{start}; {statement}")  # compiles to bytecode
        both = [(import_time(f"{start}; {statement}"), import_time(start)) for _ in range(2 * options.processes)]
        ours, theirs = zip(*both, strict=True)
        rows.append(Row(name, "import jax, optax, flax", "ms", list(ours), list(theirs), GOAL))
    return rows


def import_time(statements: str) -> float:
    """Returns the processor time of the statements in a new process, in milliseconds."""
    code = f"import time; start = time.process_time(); {statements}; print(1e3 * (time.process_time() - start))"
    # Installed packages are compiled to bytecode, so this one is too.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)
