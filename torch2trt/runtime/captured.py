"""A CUDA graph of what a function enqueues, captured and launched through the driver.

The capture of torch's own ``CUDAGraph`` begins with the GPU's default generator, which, up to torch 2.11 at least, then
draws numbers for no other thread, and for none at all once CUDA has refused a capture. Here no generator takes part:
what draws from one while it is captured raises, so it is not captured.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator

import torch

from torch2trt.engine.memory import without_collections
from torch2trt.runtime import driver, streams

# CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH: memory of CUDA's own pools that a run has kept forbids no other run.
_AUTO_FREE = 1


class CapturedGraph:
    """What a function enqueues, to be enqueued again at once, without Python in between.

    Device memory that torch allocates in this thread meanwhile stays reserved as long as the graph is there.

    Args:
        stream: the current one, of its device; nobody else uses it, and it is not captured.
        enqueue: called once, while the stream is captured, so nothing runs.

    Raises:
        RuntimeError: CUDA refused, or the function raised it; the stream is then as it was.
    """

    def __init__(self, stream: torch.cuda.Stream, enqueue: Callable[[], object]) -> None:
        self._device = stream.device
        streams.enter(stream)
        # What a collection drops may give memory back to CUDA, in this thread, which would end the capture.
        with _memory(stream.device.index) as pool, without_collections():
            self._handle = _instantiate(_capture(stream.cuda_stream, enqueue))
        # A launch waits where the GPU is a thousand launches behind, perhaps for what another thread is yet to enqueue:
        # it may not keep Python's lock.
        self._launch = driver.library().cuGraphLaunch
        end = weakref.finalize(self, _let_go, self._handle, stream.device.index, pool)
        # With the process its memory goes, and CUDA may have gone before.
        end.atexit = False

    def launch(self, stream: int) -> None:
        """Enqueue it all.

        Args:
            stream: handle of a stream of its device, which is the current one.

        Raises:
            RuntimeError: CUDA refused; as for any launch, maybe for what failed before.
        """
        if self._launch(self._handle, stream):
            # Of a thread whose first call of CUDA this is: torch leaves its context to the first call that needs one.
            streams.enter(torch.cuda.current_stream(self._device))
            driver.check(self._launch(self._handle, stream), "launch a graph")


@contextlib.contextmanager
def _memory(device: int) -> Iterator[tuple[int, int]]:
    """Have torch allocate for this thread in a pool of its own, which stays for :func:`_let_go` if all goes well.

    ``torch.cuda.MemPool`` would give memory back to CUDA when it is dropped, which a capture of the caller's forbids.
    """
    pool = torch.cuda.graph_pool_handle()
    # Before the capture begins and until it has ended: meanwhile torch asks no event, in whichever thread.
    torch._C._cuda_beginAllocateCurrentThreadToPool(device, pool)
    try:
        yield pool
    except BaseException:
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
        raise
    torch._C._cuda_endAllocateToPool(device, pool)


def _capture(stream: int, enqueue: Callable[[], object]) -> int:
    """The handle of a graph of what is enqueued."""
    library, graph = driver.library(), ctypes.c_void_p()
    # Other threads may do what they like meanwhile.
    driver.check(library.cuStreamBeginCapture_v2(stream, driver.THREAD_LOCAL), "begin a capture")
    try:
        enqueue()
    except BaseException:
        # What was raised says more than that the capture is broken, if it is.
        if not library.cuStreamEndCapture(stream, ctypes.byref(graph)):
            with driver.relaxed():
                library.cuGraphDestroy(graph.value)
        raise
    driver.check(library.cuStreamEndCapture(stream, ctypes.byref(graph)), "end a capture")
    assert graph.value is not None
    return graph.value


def _instantiate(graph: int) -> int:
    """The handle of what can be launched, each time with that stream's priority, in place of a graph that cannot."""
    library, handle = driver.library(), ctypes.c_void_p()
    with driver.relaxed():
        code = library.cuGraphInstantiateWithFlags(ctypes.byref(handle), graph, _AUTO_FREE)
        library.cuGraphDestroy(graph)
    driver.check(code, "instantiate a graph")
    assert handle.value is not None
    return handle.value


def _let_go(handle: int, device: int, pool: tuple[int, int]) -> None:
    """Destroy a graph, when what it still runs is done, and give its memory back to torch.

    The garbage collector may call this in any thread, also in one that is capturing.
    """
    with driver.relaxed():
        driver.library().cuGraphExecDestroy(handle)
    torch._C._cuda_releasePool(device, pool)
