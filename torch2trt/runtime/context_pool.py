"""A bounded pool of execution contexts: runs on several streams are on the GPU at the same time.

Contexts on one scratch memory, with their CUDA graphs and the buffers of these, run in turns: on one stream in its
order, and on another one after what the last one still has to do. Such a set is made when it is first needed, so
who uses one stream has one set.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from torch2trt.runtime import streams
from torch2trt.runtime.context import Context, Engine
from torch2trt.runtime.cuda_graphs import GraphCache
from torch2trt.runtime.profiles import Shapes


class EngineContexts:
    """The contexts of one engine on one scratch memory."""

    def __init__(self, engine: Engine, scratch: torch.Tensor, *, cuda_graphs: bool) -> None:
        self.graphs = GraphCache(engine, scratch, enabled=cuda_graphs)
        self._engine = engine
        self._scratch = scratch
        self._plain: dict[int, Context] = {}

    def plain(self, shapes: Shapes) -> Context:
        """The context for runs at these shapes that are no graph replay: there is one for each optimization profile."""
        profile = self._engine.profile_of(shapes)
        if profile not in self._plain:
            self._plain[profile] = Context(self._engine, self._scratch, profile)
        return self._plain[profile]

    def warm(self, shapes: Shapes) -> Context | None:
        """A context that has already run at these shapes."""
        graph = self.graphs.peek(shapes)
        if graph is not None:
            return graph.context
        return next((context for context in self._plain.values() if context.shapes == shapes), None)

    def tensors(self) -> Iterator[torch.Tensor]:
        """The memory that outlives a run."""
        yield self._scratch
        for graph in self.graphs:
            yield from graph.inputs
            yield from graph.outputs


class ContextSet:
    """Scratch memory, and the contexts of engines that run on it in turns, in the order of one stream at a time.

    Args:
        device: where it is.
        size: bytes of scratch memory to begin with; an engine that needs more gets more.
        cuda_graphs: whether its runs are captured.
    """

    def __init__(self, device: torch.device, size: int, *, cuda_graphs: bool) -> None:
        self.lock = threading.RLock()
        """Held while a run is enqueued."""
        self.handle = -1
        """Of the stream that used it last."""
        self.lent = False
        """Whether a CUDA graph that the caller captured has baked in one of its contexts."""
        self._device = device
        self._cuda_graphs = cuda_graphs
        self._stream: torch.cuda.Stream | None = None
        self._scratch = self._new_scratch(size)
        self._of: dict[Engine, EngineContexts] = {}

    def of(self, engine: Engine) -> EngineContexts:
        """The contexts of an engine."""
        own = self._of.get(engine)
        if own is None:
            if self._scratch.numel() < engine.scratch_bytes:
                # Contexts that have the smaller one baked in keep it.
                self._scratch = self._new_scratch(engine.scratch_bytes)
            own = self._of[engine] = EngineContexts(engine, self._scratch, cuda_graphs=self._cuda_graphs)
        return own

    def known(self, engine: Engine) -> EngineContexts | None:
        """The contexts of an engine, if it has run here."""
        return self._of.get(engine)

    def is_idle(self) -> bool:
        """Whether nobody is using it, on the host or the GPU; False where that cannot be told."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            return streams.is_idle(self.handle)
        finally:
            self.lock.release()

    def can_be_waited_for(self) -> bool:
        """Whether a stream can wait for the one that used it last: not while that is captured."""
        return not streams.is_capturing(self.handle)

    def hand_over(self, current: torch.cuda.Stream, *, wait: bool) -> None:
        """Make a stream the one that uses it.

        Args:
            current: the caller's current stream.
            wait: for what the last stream still has to do.
        """
        with self.lock:
            if self._stream is not None:
                if wait:
                    current.wait_event(self._stream.record_event())
                for tensor in self.tensors():
                    tensor.record_stream(current)
            self._stream, self.handle = current, current.cuda_stream

    def tensors(self) -> list[torch.Tensor]:
        """The memory that outlives a run."""
        every = [self._scratch, *(tensor for own in self._of.values() for tensor in own.tensors())]
        return list({id(tensor): tensor for tensor in every}.values())

    def _new_scratch(self, size: int) -> torch.Tensor:
        # Made in inference mode it could not be handed over outside it.
        with torch.inference_mode(False):
            return torch.empty(size, dtype=torch.uint8, device=self._device)


class ContextPool:
    """The context sets of engines on one device that run one after the other, each on scratch memory for the largest.

    Args:
        most: sets, at most: runs on so many streams are on the GPU at the same time, and others wait for the one
            whose last run is longest ago.
        cuda_graphs: whether runs are captured.
    """

    def __init__(self, most: int, *, cuda_graphs: bool) -> None:
        self._most = most
        self._cuda_graphs = cuda_graphs
        self._device: torch.device | None = None
        self._size = 0
        self._lock = threading.RLock()
        self._sets: list[ContextSet] = []  # the last used first
        self._lent: list[ContextSet] = []

    def add(self, engine: Engine) -> None:
        """Make room for an engine in the sets that will be made."""
        with self._lock:
            assert self._device in (None, engine.device)
            self._device = engine.device
            self._size = max(self._size, engine.scratch_bytes)

    def take(self, stream: int) -> ContextSet:
        """The set for one run on the caller's current stream, with its lock held: release it when all is enqueued.

        Args:
            stream: the stream's handle; it is not captured.
        """
        with self._lock:
            taken = self._sets[0] if self._sets else None
            if taken is None or taken.handle != stream or taken.lent:
                taken = self._choose(stream)
            taken.lock.acquire()
            return taken

    def warm(self, engine: Engine, shapes: Shapes, stream: int) -> tuple[ContextSet, Context] | None:
        """A set with a context that has already run at these shapes, its lock held; for a capture of the caller's.

        Args:
            stream: handle of the stream that is captured.
        """
        with self._lock:
            found = [each for each in self._sets if self._warm(each, engine, shapes) is not None]
            if not found:
                return None
            # The rest of a capture gets what its beginning got, and streams what they have used.
            best = min(found, key=lambda each: (not each.lent, each.handle != stream, not each.is_idle()))
            best.lock.acquire()
            context = self._warm(best, engine, shapes)
            assert context is not None
            return best, context

    def contexts(self, engine: Engine) -> list[EngineContexts]:
        """The contexts of an engine that are there, the last used first."""
        with self._lock:
            return [own for each in self._sets if (own := each.known(engine)) is not None]

    @staticmethod
    def _warm(where: ContextSet, engine: Engine, shapes: Shapes) -> Context | None:
        with where.lock:
            own = where.known(engine)
            return None if own is None else own.warm(shapes)

    def _choose(self, stream: int) -> ContextSet:
        # Graphs of the caller's use these; they live as long as the engines.
        self._lent += [each for each in self._sets if each.lent]
        self._sets = [each for each in self._sets if not each.lent]
        chosen = next((each for each in self._sets if each.handle == stream), None)
        if chosen is None:
            chosen = self._take_over(torch.cuda.current_stream(self._device))
        self._sets = [chosen, *(each for each in self._sets if each is not chosen)]
        return chosen

    def _take_over(self, current: torch.cuda.Stream) -> ContextSet:
        """A set for a stream that has none: one whose work is done, a new one, or one to wait for."""
        streams.enter(current)
        idle = next((each for each in self._sets if each.is_idle()), None)
        if idle is not None:
            idle.hand_over(current, wait=False)
            return idle
        oldest = next((each for each in reversed(self._sets) if each.can_be_waited_for()), None)
        if oldest is None or len(self._sets) < self._most:
            made = self._new(may_fail=oldest is not None)
            if made is not None:
                made.hand_over(current, wait=False)
                return made
        assert oldest is not None
        oldest.hand_over(current, wait=True)
        return oldest

    def _new(self, *, may_fail: bool) -> ContextSet | None:
        """One more set; None where there is no memory for it."""
        assert self._device is not None
        try:
            return ContextSet(self._device, self._size, cuda_graphs=self._cuda_graphs)
        except torch.cuda.OutOfMemoryError:
            if not may_fail:
                raise
            # To ask for it again and again would have torch give back what it keeps for others each time.
            self._most = len(self._sets)
            return None
