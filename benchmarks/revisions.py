"""Another revision of this repository against the working tree: `python -m benchmarks.revisions REVISION [--pairs 9]`.

Each pair is one process with each revision; the start of a process is measured in processes of its own. Both revisions
run in the environment of this one, whose libraries the other must accept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import table
from benchmarks.imports import BASE, MAKE
from benchmarks.pairs import Row

ROOT = Path(__file__).parents[1]
GOAL = 1.03


def main() -> None:
    """Prints a line for each time, with the ratio of this revision to the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.revisions", description=__doc__)
    parser.add_argument("revision", help="a commit, a branch or a tag")
    parser.add_argument("--pairs", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        packed = subprocess.run(["git", "archive", arguments.revision], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", directory], input=packed.stdout, check=True)
        trees = {"this": ROOT, "other": Path(directory)}
        values: dict[str, list[dict[str, float]]] = {"this": [], "other": []}
        for tree in trees.values():
            measured(tree)  # compiles to bytecode
        for k in range(arguments.pairs):
            for side in ("this", "other") if k % 2 == 0 else ("other", "this"):
                values[side].append(measured(trees[side]))
            print(f"pair {k + 1} of {arguments.pairs}", file=sys.stderr)
    rows = [
        Row(
            name,
            arguments.revision,
            "ms" if "first" in name else "us/step",
            *([line[name] for line in values[side]] for side in ("this", "other")),
            goal=GOAL,
        )
        for name in values["this"][0]
    ]
    print(table(rows))


def measured(tree: Path) -> dict[str, float]:
    """The times of a checkout."""
    lines = json.loads(output(tree, "-P", str(Path(__file__).with_name("one_revision.py"))))
    for name in ("digits", "conv"):
        lines[f"{name}, first step"] = float(output(tree, "-m", "benchmarks.startup", "ours", name))
    code = f"import time; start = time.process_time(); {BASE}; {MAKE}; print(1e3 * (time.process_time() - start))"
    return lines | {"import elegy, first Trainer": float(output(tree, "-c", code))}


def output(tree: Path, *arguments: str) -> str:
    """The last line that a process prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**environment, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed in {tree}:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
