"""Prints the lowest version of each library that pyproject.toml allows, as constraints for pip.

The benchmarks' own libraries are left out, and extras of libraries, which constraints cannot have.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = {"core": project["dependencies"], **project["optional-dependencies"]}
for name, requirements in groups.items():
    if name != "bench":
        bounds = (re.sub(r"\[.*?\]", "", requirement) for requirement in requirements if ">=" in requirement)
        print(*(bound.replace(">=", "==") for bound in bounds), sep="\n")
