"""`import elegy` against `import jax, optax`, in fresh processes."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.options import Options
from benchmarks.pairs import Row

GOAL = 1.15
BASE = "import jax, optax"


def run(options: Options) -> list[Row]:
    """One line for the import alone, and one with the Trainer, which imports most of the package."""
    lines = (("import elegy", GOAL), ("from elegy import Trainer", None))
    pairs = max(3, options.repeats)
    rows = []
    for statement, goal in lines:
        both = [(import_time(f"{BASE}; {statement}"), import_time(BASE)) for _ in range(pairs)]
        ours, theirs = zip(*both, strict=True)
        rows.append(Row(f"{BASE}; {statement}", BASE, "ms", list(ours), list(theirs), goal))
    return rows


def import_time(statements: str) -> float:
    """Returns the processor time of the statements in a new process, in milliseconds."""
    code = f"import time; start = time.process_time(); {statements}; print(1e3 * (time.process_time() - start))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)
