"""Every test sees eight CPU devices; what names no device runs on the first."""

import os

# Before JAX starts: XLA's pool of threads must have room for the collectives of several devices.
os.environ.setdefault("NPROC", "32")

import jax
from processes import run_devices as run_devices
from processes import start as start

jax.config.update("jax_num_cpu_devices", 8)
