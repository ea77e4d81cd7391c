"""Memory that is free, but not yet the system's again, and when Python looks for some."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterator


def give_back() -> None:
    """Return to the system what the C library keeps of freed memory.

    glibc keeps blocks below 32 MB, which weights and what TensorRT makes of them are. Other C libraries return them on
    their own, or cannot be asked.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


_lock = threading.Lock()
_blocks = 0
_was_on = False


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """A block in which Python looks for no cycles of objects that nothing needs.

    Tracing and rewriting a graph makes hundreds of thousands of objects, nearly all of which stay. Each search, though,
    goes over those of all libraries too: a fifth of the time of a compilation whose engine is in the cache.
    """
    global _blocks, _was_on
    with _lock:
        if not _blocks:
            _was_on = gc.isenabled()
            gc.disable()
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks and _was_on:
                gc.enable()
