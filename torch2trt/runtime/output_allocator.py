"""Outputs whose sizes depend on data: TensorRT asks for their memory while it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


class SizedByData:
    """The outputs of one execution context whose sizes depend on data.

    Args:
        trt: the TensorRT package of the context.
        device: where they are.
    """

    def __init__(self, trt: Any, device: torch.device) -> None:
        self._device = device
        self._stream = 0
        self._buffers: dict[str, torch.Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._outgrown: list[torch.Tensor] = []
        self.error: Exception | None = None
        """Why there was no memory in this run."""
        self.handle = _allocator_class(trt)(self._allocate, self._shapes.__setitem__)
        """The ``IOutputAllocator`` of them all; contexts do not keep it alive."""

    def begin(self, stream: int) -> None:
        """Get ready for a run on a CUDA stream, of which this is the handle."""
        self._stream = stream
        self._buffers.clear()
        self._shapes.clear()
        self.end()
        self.error = None

    def end(self) -> None:
        """Give back what TensorRT found too small, once all of the run is enqueued."""
        self._outgrown.clear()

    def take(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """What the run that has just been enqueued writes, None where TensorRT has said nothing of it."""
        buffer, shape = self._buffers.pop(name, None), self._shapes.get(name)
        if buffer is None or shape is None:
            return None
        # A view of the bytes could not be written where gradients are on.
        made = torch.empty(0, dtype=dtype, device=self._device)
        return made.set_(buffer.untyped_storage(), 0, shape)  # type: ignore[call-overload, no-any-return]

    def _allocate(self, name: str, size: int) -> int:
        """The address of so many bytes of memory for an output, 0 where there are none."""
        # Asked again it is the same memory, in which something may be by now.
        before = self._buffers.get(name)
        if before is not None and before.numel() >= size:
            return before.data_ptr()
        # No exception may pass through TensorRT.
        try:
            buffer = torch.empty(max(size, 1), dtype=torch.uint8, device=self._device)
            current = torch.cuda.current_stream(self._device)
            if current.cuda_stream != self._stream:
                # Who had this memory may not be done with it yet, on the stream that it comes from.
                torch.cuda.ExternalStream(self._stream, self._device).wait_stream(current)
        except Exception as error:
            self.error = error
            return 0
        if before is not None:
            # What is enqueued already may write there, and the next output may not have it yet.
            self._outgrown.append(before)
        self._buffers[name] = buffer
        return buffer.data_ptr()


@functools.cache
def _allocator_class(trt: Any) -> Any:
    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self, allocate: Callable[[str, int], int], notify: Callable[[str, tuple[int, ...]], None]) -> None:
            trt.IOutputAllocator.__init__(self)
            self._allocate = allocate
            self._notify = notify

        def reallocate_output_async(self, tensor_name: str, memory: Any, size: int, alignment: int, stream: Any) -> int:
            return self._allocate(tensor_name, size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self._notify(tensor_name, tuple(shape))

    return OutputAllocator
