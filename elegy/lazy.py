"""Optional libraries: recognises their objects without importing them, and imports them on first use."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_OF_THEIR_NAME = (
    *("flax", "haiku", "equinox", "keras", "mlflow", "optuna", "penzai", "safetensors", "trackio", "wandb"),
    *("datasets", "h5py", "pandas", "polars", "pyarrow", "zarr"),
)

EXTRAS = {name: name for name in _OF_THEIR_NAME} | {
    "flatbuffers": "export",
    "fsspec": "remote",
    "docstring_parser": "cli",
    "jsonargparse": "cli",
    "huggingface_hub": "hub",
    "jax2onnx": "onnx",
    "onnxruntime": "onnx",
    "psutil": "monitors",
    "starlette": "serve",
    "uvicorn": "serve",
}
"""The extra of this package that installs a library, by the library's top-level module."""


def is_instance_of(value: Any, module: str, *names: str) -> bool:
    """True if `value` is an instance of one of `module`'s classes, without importing `module`.

    Only an imported library can have made the value, so the function looks in `sys.modules`.

    Example:
        >>> is_instance_of(3, "torch.utils.data", "DataLoader")
        False
    """
    loaded = sys.modules.get(module)
    if loaded is None:
        return False
    classes = tuple(c for c in (getattr(loaded, name, None) for name in names) if isinstance(c, type))
    return isinstance(value, classes)


def require(module: str, purpose: str) -> ModuleType:
    """Imports an optional library, or raises an error that says what needs it and how to install it.

    Raises:
        ImportError: if the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        extra = EXTRAS.get(root)
        how = f'`pip install "elegy[{extra}]"`' if extra else f"`pip install {root}`"
        raise ImportError(f"{purpose} needs the library {root!r}: install it with {how}.") from error
