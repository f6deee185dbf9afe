"""Every test sees eight CPU devices; what names no device runs on the first.

What one test compiled, the others load.
"""

import atexit
import os
import shutil
import tempfile

# Before JAX starts: XLA's pool of threads must have room for the collectives of several devices.
os.environ.setdefault("NPROC", "32")

# In the environment, so that the workers of a test run and the processes that tests start share it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="elegy-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
from processes import run_devices as run_devices
from processes import start as start

jax.config.update("jax_num_cpu_devices", 8)
