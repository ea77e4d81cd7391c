"""CUDA streams as torch does not offer them: ones that are nobody else's, and questions that disturb no capture.

``torch.cuda.Stream()`` hands out 32 streams in turns, so two that were made apart may be one. What another thread
enqueues on a stream that is being captured becomes part of the graph, and does not run.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch

from torch2trt.runtime import driver

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: neither waits for the default stream nor is waited for by it
_NO_CAPTURE = 0  # CU_STREAM_CAPTURE_STATUS_NONE
_IMPLICIT = 906  # CUDA_ERROR_STREAM_CAPTURE_IMPLICIT


@functools.cache
def own(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """A stream of this process that ``torch.cuda.Stream()`` never hands out, one for each purpose.

    Args:
        device: a CUDA device with its index; its current stream may not be one that is captured.
    """
    with torch.cuda.device(device):
        enter(torch.cuda.current_stream(device))
        handle = ctypes.c_void_p()
        code = driver.questions().cuStreamCreate(ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
        driver.check(code, "create a stream")
    assert handle.value is not None
    return torch.cuda.ExternalStream(handle.value, device)


def enter(current: torch.cuda.Stream) -> None:
    """Make the device's context current in this thread, which the driver asks for: torch leaves it to its first call.

    Args:
        current: the current stream, which is not captured.
    """
    current.record_event()


def is_capturing(handle: int) -> bool:
    """Whether what is enqueued on a stream becomes part of a graph, or ends a capture."""
    status = ctypes.c_int(_NO_CAPTURE)
    code = driver.questions().cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status))
    # The default stream may not be used while one that waits for it is captured.
    return status.value != _NO_CAPTURE or bool(code == _IMPLICIT)


def is_idle(handle: int) -> bool:
    """Whether everything that was enqueued on a stream is done; False where that cannot be told.

    A capture anywhere in the process is left alone: to ask a stream that is captured would end its capture, and to ask
    another one would, by default, end every other thread's.
    """
    if is_capturing(handle):
        return False
    with driver.relaxed():
        return not driver.questions().cuStreamQuery(ctypes.c_void_p(handle))


# torch.cuda.current_stream takes 40 times as long.
current_handle: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", None) or (
    lambda index: torch.cuda.current_stream(index).cuda_stream
)
"""Handle of the current stream of the device with an index."""
