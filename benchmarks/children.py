"""Measurements in separate processes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def child(module: str, *arguments: str) -> Any:
    """Runs `python -m benchmarks.<module> <arguments>` and reads the JSON on the last line that it prints.

    Raises:
        RuntimeError: if the process fails; the message has its output.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
