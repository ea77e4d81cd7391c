"""Many calls, several in flight: while one is computed, the next is copied to the GPU and the last one back."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch2trt.errors import FrozenModuleError, SettingError
from torch2trt.graph.signature import TensorLeaf
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.hybrid import HybridSession
from torch2trt.runtime.inputs import as_call
from torch2trt.runtime.session import Session


class Pipeline:
    """Copies in, runs and copies out on a stream each, which wait for each other call by call.

    Args:
        run: a compiled module.
        artifact, session: its own.
        in_flight: calls that have begun and whose results are still to come, at most.
        to_host: bring results to pinned host memory.

    Raises:
        NoGPUError, UnsupportedGPUError, ArtifactMismatchError: the engine cannot run there.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        artifact: Artifact,
        session: Session | HybridSession,
        *,
        in_flight: int,
        to_host: bool,
    ) -> None:
        engine = session.open()
        self._run = run
        self._signature = signature = artifact.signature
        self._device = engine.device
        self._on_host = {
            position
            for position, leaf in enumerate(signature.inputs)
            if isinstance(leaf, TensorLeaf) and leaf.name in engine.host_inputs
        }
        self._in_flight = in_flight
        self._to_host = to_host
        self._in, self._compute, self._out = (torch.cuda.Stream(self._device) for _ in range(3))

    def start(self) -> list[_Slot]:
        """Get ready for calls; returns a place for each that may be in flight."""
        # What has been enqueued before, the module's state may be waiting for.
        self._compute.wait_stream(torch.cuda.current_stream(self._device))
        return [_Slot() for _ in range(self._in_flight)]

    def stop(self) -> None:
        """The places are no longer needed."""
        # Their memory goes back to the stream it came from.
        self._compute.wait_stream(self._in)

    @torch.no_grad()
    def begin(self, call: Any, slot: _Slot) -> tuple[Any, torch.cuda.Event]:
        """Enqueue a call; returns its result, and when it is there."""
        leaves = self._signature.flatten(*as_call(call))
        there = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_cuda]
        if there:
            self._compute.wait_stream(torch.cuda.current_stream(self._device))
        copied = [position for position, leaf in enumerate(leaves) if self._is_copied(position, leaf)]
        given = [_pinned(leaves[position]) for position in copied]
        with torch.cuda.stream(self._compute):
            is_new = slot.make_room(given, self._device)
        if is_new:
            # Its memory may be that of something which is still computed.
            self._in.wait_stream(self._compute)
        elif slot.done is not None:
            self._in.wait_event(slot.done)
        with torch.cuda.stream(self._in):
            for value, buffer in zip(given, slot.buffers, strict=True):
                buffer.copy_(value, non_blocking=True)
        read = self._in.record_event()
        self._compute.wait_event(read)
        is_callers = any(value is leaves[position] for position, value in zip(copied, given, strict=True))
        for position, buffer in zip(copied, slot.buffers, strict=True):
            leaves[position] = buffer
        args, kwargs = pytree.tree_unflatten(leaves, self._signature.in_spec)
        with torch.cuda.stream(self._compute):
            result = pytree.tree_map_only(torch.Tensor, slot.own, self._run(*args, **kwargs))
        slot.done = computed = self._compute.record_event()
        if self._to_host:
            self._out.wait_event(computed)
            with torch.cuda.stream(self._out):
                result = pytree.tree_map_only(torch.Tensor, self._brought, result)
            slot.done = self._out.record_event()
        # Whoever gives the calls may write the next into the same memory.
        if is_callers:
            read.synchronize()
        if there:
            torch.cuda.current_stream(self._device).wait_event(computed)
        return result, slot.done

    def finish(self, result: Any, done: torch.cuda.Event) -> Any:
        """A result of :meth:`begin` that may be used."""
        if self._to_host:
            done.synchronize()
            return result
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_cuda:
                leaf.record_stream(current)
        return result

    def _is_copied(self, position: int, leaf: Any) -> bool:
        return isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and position not in self._on_host

    def _brought(self, value: torch.Tensor) -> torch.Tensor:
        if not value.is_cuda:
            return value
        host = torch.empty_like(value, device="cpu", pin_memory=True)
        host.copy_(value, non_blocking=True)
        value.record_stream(self._out)
        return host


def pipelined(
    modules: Sequence[Callable[..., Any]],
    sessions: Sequence[Session | HybridSession],
    artifact: Artifact,
    calls: Iterable[Any],
    *,
    in_flight: int,
    to_host: bool,
) -> Iterator[Any]:
    """The results of calls, in order, each on the module whose turn it is.

    Args:
        modules, sessions: on a device each, of one artifact.
        calls, in_flight, to_host: as ``EngineModule.map`` takes them.

    Raises:
        As ``EngineModule.map``.
    """
    if in_flight < 1:
        raise SettingError(f"must be positive, got {in_flight}", subject="in_flight")
    if not modules:
        raise SettingError("there are none", subject="devices")
    signature = artifact.signature
    if any(update.position < len(signature.inputs) for update in signature.updates):
        hint = "call it instead: map would have it write into copies"
        raise FrozenModuleError("writes into its arguments", subject=artifact.name, hint=hint)
    if signature.state and len(modules) > 1:
        raise FrozenModuleError("changes buffers, of which each device would have its own", subject=artifact.name)
    pipelines = [
        Pipeline(module, artifact, session, in_flight=in_flight, to_host=to_host)
        for module, session in zip(modules, sessions, strict=True)
    ]
    return _results(pipelines, calls)


def _results(pipelines: Sequence[Pipeline], calls: Iterable[Any]) -> Iterator[Any]:
    places = [pipeline.start() for pipeline in pipelines]
    # Neighbours are on different devices.
    turns = [(pipelines[index], own[index]) for own in zip(*places, strict=True) for index in range(len(own))]
    begun: deque[tuple[Pipeline, Any, torch.cuda.Event]] = deque()
    try:
        for call, (pipeline, slot) in zip(calls, itertools.cycle(turns), strict=False):
            if len(begun) == len(turns):
                first, result, done = begun.popleft()
                yield first.finish(result, done)
            begun.append((pipeline, *pipeline.begin(call, slot)))
        while begun:
            first, result, done = begun.popleft()
            yield first.finish(result, done)
    finally:
        for pipeline in pipelines:
            pipeline.stop()


class _Slot:
    """Where the tensors of one call at a time are on the device: in one place, so that CUDA graphs read them there."""

    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        self.done: torch.cuda.Event | None = None
        """When the last call that used it was through."""

    def make_room(self, values: list[torch.Tensor], device: torch.device) -> bool:
        """Have a buffer for each of these; says whether they are new."""
        if list(map(_form, values)) == list(map(_form, self.buffers)):
            return False
        with torch.inference_mode(False):
            self.buffers = [torch.empty_like(value, device=device) for value in values]
        return True

    def own(self, value: torch.Tensor) -> torch.Tensor:
        """A result, or a copy of it where it is in a buffer: a module may return its arguments."""
        places = {buffer.untyped_storage().data_ptr() for buffer in self.buffers}
        return value.clone() if value.untyped_storage().data_ptr() in places else value


def _form(value: torch.Tensor) -> tuple[Any, ...]:
    return value.shape, value.dtype, value.stride()


def _pinned(value: torch.Tensor) -> torch.Tensor:
    """The values in memory that the GPU copies by itself, dense."""
    if value.is_pinned() and value.stride() == torch.empty_like(value, device="meta").stride():
        return value
    return torch.empty_like(value, pin_memory=True).copy_(value)
