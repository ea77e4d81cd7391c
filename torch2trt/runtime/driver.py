"""The CUDA driver's functions, for what torch does not offer.

They are called through ctypes, on the library that torch has loaded already. NVIDIA's cuda-bindings, which come with
torch from 2.10 on, take half as long again for a launch: each call takes objects apart and returns a tuple.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from typing import Any

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: in this thread alone, what a capture misses is refused
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: nothing is refused, whatever is captured anywhere

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_HANDLE, _HANDLES = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_ARGUMENTS = {
    "cuStreamBeginCapture_v2": (_HANDLE, ctypes.c_int),
    "cuStreamEndCapture": (_HANDLE, _HANDLES),
    "cuGraphInstantiateWithFlags": (_HANDLES, _HANDLE, ctypes.c_ulonglong),
    "cuGraphDestroy": (_HANDLE,),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


@functools.cache
def library() -> Any:
    """The functions; each returns an error code, 0 for none. Other threads run Python during a call."""
    found = ctypes.CDLL(_LIBRARY)
    for name, arguments in _ARGUMENTS.items():
        getattr(found, name).argtypes = arguments
    return found


@functools.cache
def questions() -> Any:
    """The functions, for calls that never wait and are shorter than to give Python's lock back, which they keep."""
    return ctypes.PyDLL(_LIBRARY)


def check(code: int, what: str) -> None:
    """Raise what a call returned.

    Args:
        what: that was asked for, as an infinitive.

    Raises:
        RuntimeError: the code is an error's.
    """
    if code:
        name = ctypes.c_char_p()
        library().cuGetErrorName(code, ctypes.byref(name))
        raise RuntimeError(f"CUDA refused to {what}: {(name.value or b'error').decode()} ({code})")


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Leave every capture in the process alone: by default, calls that could be unsafe in one end it."""
    mode = ctypes.c_int(RELAXED)
    questions().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        questions().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
