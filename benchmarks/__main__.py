"""One command for all benchmarks: `python -m benchmarks [--quick] [--only NAME ...] [--json PATH]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import jax

from benchmarks.options import Options
from benchmarks.pairs import Row

# Some benchmarks run processes of their own, which need memory of the same device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

NAMES = (
    "fit",
    "gpt",
    "callbacks",
    "levels",
    "evaluate",
    "reading",
    "startup",
    "memory",
    "compiles",
    "pytree",
    "imports",
    "frameworks",
    "persistence",
    "population",
)
_COLUMNS = ("what", "against", "ratio", "min", "max", "goal", "", "Elegy", "other", "unit")


def main() -> int:
    """Runs the selected benchmarks; returns 0 even if goals are missed, because of noisy machines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller data and fewer pairs: under two minutes")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"of: {', '.join(NAMES)}")
    parser.add_argument(
        "--repeats", type=int, help="pairs for each line (default 9, 5 on accelerators, 3 with --quick)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write all measured values")
    arguments = parser.parse_args()
    on_cpu = jax.default_backend() == "cpu"
    usual = 3 if arguments.quick else 9 if on_cpu else 5
    options = Options(arguments.quick, arguments.repeats or usual, accelerator=not on_cpu)
    print(", ".join(f"{name}: {value}" for name, value in machine().items()), file=sys.stderr)
    rows: list[Row] = []
    for name in arguments.only or NAMES:
        start = time.perf_counter()
        rows += importlib.import_module(f"benchmarks.{name}").run(options)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(table(rows))
    if arguments.json:
        report = {"machine": machine(), "options": vars(options), "rows": [row.as_dict() for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def machine() -> dict[str, object]:
    """Describes the machine of the measurement."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def table(rows: list[Row]) -> str:
    """Formats the rows as text: medians, and the range of ratios."""
    cells = [_COLUMNS]
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        goal = "" if row.goal is None else f"{row.goal:.2f}"
        ratios = [f"{value:.3f}" for value in (row.ratio, min(row.ratios), max(row.ratios))]
        values = [f"{statistics.median(side):,.4g}" for side in (row.ours, row.theirs)]
        cells.append((row.name, row.other, *ratios, goal, verdict, *values, row.unit))
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    notes = [f"  {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *notes])


if __name__ == "__main__":
    sys.exit(main())
