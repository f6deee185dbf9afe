"""Every test sees eight CPU devices; what names no device runs on the first.

What one test compiled, the others load.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from importlib.metadata import version

# Before JAX starts: XLA's pool of threads must have room for the collectives of several devices.
os.environ.setdefault("NPROC", "32")

# With the lowest JAX, compile without LLVM's optimisations and with XLA's older emitters: most of the time of the tests
# is compiling, which takes a third less. XLA's own passes, as fusion and partitioning, are the same. References are
# computed by other means; two ways to the same bits are both compiled so. With a newer JAX the tests compile as users
# do: a later XLA ends the process at the second flag, and a single step and fused steps differ in bits without LLVM's
# optimisations. What the environment sets stays: `XLA_FLAGS= pytest` compiles as users do.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

# GPUs multiply float32 matrices in TF32, TPUs in bfloat16: tests that compare with NumPy to 1e-5 need all of float32.
# In the environment, for the processes that tests start too.
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"

# In the environment, so that the processes which tests start share it. Each worker of a test run has one of its own,
# because JAX writes entries in place: another worker might read half of one.
if "ELEGY_TESTS_CACHE" not in os.environ:
    os.environ["ELEGY_TESTS_CACHE"] = tempfile.mkdtemp(prefix="elegy-tests-")
    atexit.register(shutil.rmtree, os.environ["ELEGY_TESTS_CACHE"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
    os.environ["ELEGY_TESTS_CACHE"], os.environ.get("PYTEST_XDIST_WORKER", "alone")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Services of loggers: files of the tests alone, nothing sent elsewhere, no long retries.
os.environ |= {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "TRACKIO_DIR": os.path.join(os.environ["JAX_COMPILATION_CACHE_DIR"], "trackio"),
    "WANDB_ERROR_REPORTING": "false",
}
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from hypothesis import HealthCheck, settings
from processes import run_devices as run_devices
from processes import start as start
from some_cases import spread

jax.config.update("jax_num_cpu_devices", 8)

# No examples that fail because the machine is busy.
settings.register_profile("busy machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

# What a shell starts in the background ignores Ctrl-C; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of the stage of `.ci/run` with the lowest versions."""
    parser.addoption("--ends", action="store_true", help="of each table of cases, run only the first and the last")


@pytest.hookimpl(wrapper=True)  # around -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Marks cases slow where a test is marked `some`; with `--ends`, runs the ends of each table of cases.

    Cases that need a library run in any case.
    """
    for cases in tables([item for item in items if item.get_closest_marker("slow") is None]):
        if (some := cases[0].get_closest_marker("some")) is not None:
            also = {item for item in cases if item.callspec.id in some.kwargs.get("also", ())}
            for item in set(cases) - set(spread(cases, *some.args)) - also:
                item.add_marker(pytest.mark.slow)
    yield
    if config.getoption("--ends"):
        kept = {item for cases in tables(items) for item in (cases[0], cases[-1])}
        kept |= {item for item in items if item.get_closest_marker("needs") is not None}
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def tables(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """The cases of each test."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return list(cases.values())


def pytest_collection_finish() -> None:
    """What was imported and collected stays: no pass of the garbage collector walks over it again."""
    gc.collect()
    gc.freeze()
