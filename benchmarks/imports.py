"""`import elegy` against `import jax, optax`, in fresh processes."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.options import Options
from benchmarks.pairs import Row

GOAL = 1.15


def run(options: Options) -> list[Row]:
    """One line."""
    pairs = [(import_time("jax, optax, elegy"), import_time("jax, optax")) for _ in range(max(3, options.repeats))]
    ours, theirs = zip(*pairs, strict=True)
    return [Row("import jax, optax, elegy", "import jax, optax", "ms", list(ours), list(theirs), GOAL)]


def import_time(modules: str) -> float:
    """Milliseconds that the interpreter spends in the named imports, start-up left out."""
    code = f"import time; start = time.process_time(); import {modules}; print(1e3 * (time.process_time() - start))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)
