"""What a run depends on outside of the program: machine, devices, the Git repository."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Describes the process, its devices and the Git repository of the working directory, as JSON values."""
    devices = [
        {"platform": device.platform, "kind": device.device_kind, "process": device.process_index}
        for device in jax.devices()
    ]
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(("JAX_", "XLA_"))}
    return {
        "command": list(sys.argv),
        "machine": platform.machine(),
        "system": platform.platform(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "devices": devices,
        "processes": jax.process_count(),
        "variables": variables,
        "git": git(),
    }


def git() -> dict[str, Any] | None:
    """The commit of the working directory and the size of what was changed since; None without a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    stat = _git("diff", "--shortstat", "HEAD") or ""
    numbers = {name: re.search(rf"(\d+) {name}", stat) for name in ("file", "insertion", "deletion")}
    untracked = _git("ls-files", "--others", "--exclude-standard", "--directory", ":/") or ""
    return {
        "commit": commit,
        "branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
        **{f"{name}s": int(match[1]) if match else 0 for name, match in numbers.items()},
        "untracked": len(untracked.splitlines()),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
