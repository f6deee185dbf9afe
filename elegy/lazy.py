"""Imports on first use: optional libraries, recognised without an import, and the modules of a package."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from elegy.suggestions import module_getattr

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


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A block that imports a library: if a signal ends the import, its KeyboardInterrupt or SystemExit is raised.

    C extensions raise an ImportError or a RuntimeError in its place, as if the library were missing or broken.

    Example:
        >>> with importing():
        ...     raise ImportError("initialization failed") from SystemExit(3)
        Traceback (most recent call last):
        ...
        SystemExit: 3
    """
    handled = sys.exception()  # an interrupt from before the block may be the context of any error
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None and found is not handled:
            if isinstance(found, (KeyboardInterrupt, SystemExit)):
                raise type(found)(*found.args) from error
            found = found.__cause__ or found.__context__
        raise


def require(module: str, purpose: str) -> ModuleType:
    """Imports an optional library, or raises an error that says what needs it and how to install it.

    Raises:
        ImportError: if the library is not installed.
    """
    try:
        with importing():
            return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        extra = EXTRAS.get(root)
        how = f'`pip install "elegy[{extra}]"`' if extra else f"`pip install {root}`"
        raise ImportError(f"{purpose} needs the library {root!r}: install it with {how}.") from error


def lazy_names(
    package: str, homes: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns a package's `__getattr__` and `__dir__`, which import the modules of its names when they are used.

    A name must not be that of a submodule, which Python would put in its place.

    Args:
        package: the package's `__name__`.
        homes: the names by module, relative to `elegy`.

    Example:
        >>> get, names = lazy_names("elegy.html", {"html.tree": ["tree_html"]})
        >>> get("tree_html").__module__, names()
        ('elegy.html.tree', ['tree_html'])
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of:
            return module_getattr(package)(name)
        value = getattr(importlib.import_module(f"elegy.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    return get, lambda: sorted(home_of)
