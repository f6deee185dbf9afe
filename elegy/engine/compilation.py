"""JAX's persistent compilation cache."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable_compilation_cache(directory: str | os.PathLike[str]) -> None:
    """Turns on JAX's persistent compilation cache, for everything that the process compiles from now on.

    A process reads functions that an earlier one compiled, with the same versions on the same kind of device, from the
    directory. The environment variable `JAX_COMPILATION_CACHE_DIR` does the same without a change of code, except for
    functions that compile in less than a second.

    Args:
        directory: the directory of compiled functions; it is made if missing. Several processes may share it.

    Raises:
        ValueError: if the process already uses another directory.
    """
    path = str(Path(directory).expanduser().absolute())
    current = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # options are added at run time
    if current is not None and current != path:
        raise ValueError(
            f"compilation_cache={os.fspath(directory)!r}: this process keeps its compiled functions in {current!r} "
            "already, and JAX uses one directory in a process. Give every Trainer the same directory."
        )
    Path(path).mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
