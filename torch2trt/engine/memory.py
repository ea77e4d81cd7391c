"""Memory that is free, but not yet the system's again."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


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
