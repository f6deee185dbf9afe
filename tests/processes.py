"""Starts Python code in processes of its own, with a number of CPU devices; the fixtures are in `conftest.py`."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEADER = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", {devices})
import numpy as np
from elegy.checkpoint.store import restore, save
"""


def environment(devices: int = 1) -> dict[str, str]:
    # Several CPU devices in one process starve XLA's thread pool unless it has twice as many threads.
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    return os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "NPROC": str(2 * max(devices, 2))}


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts Python code in a process of its own, in the test's directory; it ends with the test."""
    started = []

    def run(devices: int, code: str, *arguments: str) -> subprocess.Popen:
        text = HEADER.format(devices=devices) + textwrap.dedent(code)
        process = subprocess.Popen(
            [sys.executable, "-c", text, *arguments],
            cwd=tmp_path,
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_devices(start) -> Callable[[int, str], str]:
    """Runs Python code to its end on a number of CPU devices and returns what it printed."""

    def run(devices: int, code: str) -> str:
        process = start(devices, code)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        return out

    return run
