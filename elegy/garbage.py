"""Pauses Python's cyclic garbage collector while functions are traced."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_blocks = 0
_disabled_here = False


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """While the block runs, no cyclic garbage is collected automatically.

    A trace allocates tens of thousands of objects, most of which live on in JAX's caches. Each time, a collection of
    all generations visits every object of the imported libraries: a tenth of a second, about as long as a small trace.
    Blocks may be nested and run in several threads; the last one to end turns the collector on again, if one of them
    turned it off.

    Example:
        >>> with collection_paused():
        ...     print(gc.isenabled())
        False
    """
    global _blocks, _disabled_here
    with _lock:
        _blocks += 1
        if gc.isenabled():
            gc.disable()
            _disabled_here = True
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0 and _disabled_here:
                _disabled_here = False
                gc.enable()
