"""Captured CUDA graphs: one run of an engine at fixed shapes, replayed without TensorRT or Python in between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torch2trt.runtime import streams
from torch2trt.runtime.captured import CapturedGraph
from torch2trt.runtime.context import ALIGNMENT, Context, Engine
from torch2trt.runtime.profiles import Shapes
from torch2trt.runtime.recent import Recent

log = logging.getLogger(__name__)

CAPACITY = 8
"""Shapes per engine, and places in memory per shape, that have a graph."""

# When all places are taken, a shape must come this often before it displaces another: a capture costs milliseconds,
# and shapes that change with every call would otherwise capture with every call.
_DISPLACES = 16
# Memory that comes back this often is likely to go on doing so; a loop's first calls often do not.
_SETTLED = 4
# A result that is held for some calls has many places in turns: they would go on displacing each other for a copy each.
_DISPLACES_WRITTEN = 1024

# A device has one stream for captures. An operator within a warm-up run may come back for one of its own.
_capturing = threading.RLock()


class _NotCapturable(Exception):
    """Says what went wrong."""


class Graph:
    """Captured runs at one combination of shapes, their buffers, and the context whose scratch they have baked in.

    One run reads buffers that the inputs are copied into, and writes buffers that the outputs are copied from. Inputs
    that lie where earlier ones lay get a run that reads them in place; where the fresh outputs come to lie where
    earlier ones lay too, as the allocator has it in a loop, a run that writes these as well.
    """

    def __init__(self, engine: Engine, context: Context, inputs: Sequence[torch.Tensor]) -> None:
        self.context = context
        self._engine = engine
        # Buffers made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            self.inputs = tuple(torch.empty_like(value, memory_format=torch.contiguous_format) for value in inputs)
            shapes = context.output_shapes(self.inputs, tuple(tuple(value.shape) for value in inputs))
            if any(-1 in shape for shape in shapes):
                raise _NotCapturable("the size of an output depends on data")
            self.outputs = tuple(
                torch.empty(shape, dtype=dtype, device=engine.device)
                for shape, dtype in zip(shapes, engine.output_dtypes, strict=True)
            )
        # The first run after a change of shapes does what cannot be captured; it needs sound values, indices say.
        _copy(self.inputs, inputs)
        self._buffered = self._capture(self.inputs, self.outputs, warm=True)
        self._runs_in_place = True
        self._in_place: Recent[tuple[int, ...], CapturedGraph] = Recent(CAPACITY, first=_SETTLED, later=_DISPLACES)
        self._all_in_place: Recent[tuple[int, ...], CapturedGraph] = Recent(
            CAPACITY, first=_SETTLED, later=_DISPLACES_WRITTEN
        )

    def repeat(self) -> None:
        """Run on the current stream on the inputs that it was captured with, and return nothing."""
        self._buffered.launch(streams.current_handle(self._engine.device.index))

    def replay(self, inputs: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        """Run on the current stream, which has this handle; the outputs are fresh tensors."""
        outputs = [torch.empty_like(buffer) for buffer in self.outputs]
        places = self._places(inputs)
        if places is not None:
            all_places = (*places, *[value.data_ptr() for value in outputs])
            graph = self._run_at(self._all_in_place, all_places, inputs, outputs)
            if graph is not None:
                graph.launch(stream)
                return outputs
            graph = self._run_at(self._in_place, places, inputs, self.outputs)
        else:
            graph = None
        if graph is None:
            _copy(self.inputs, inputs)
            graph = self._buffered
        graph.launch(stream)
        _copy(outputs, self.outputs)
        return outputs

    def _places(self, inputs: Sequence[torch.Tensor]) -> tuple[int, ...] | None:
        """Where the inputs are, if they can be read there."""
        for value in inputs:
            # A view of another layout, or one that negates lazily, may begin where a plain tensor did.
            if not value.is_contiguous() or value.is_neg():
                return None
        return tuple([value.data_ptr() for value in inputs])

    def _run_at(
        self,
        kept: Recent[tuple[int, ...], CapturedGraph],
        places: tuple[int, ...],
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> CapturedGraph | None:
        """The run at these places, captured where it pays."""
        graph = kept.get(places)
        if graph is not None:
            return graph
        aligned = not any(place % ALIGNMENT for place in places)
        if not self._runs_in_place or not aligned or not kept.missed(places):
            return None
        _make_place(kept, self._engine.device)
        try:
            graph = self._capture(inputs, outputs, warm=False)
        except _NotCapturable as error:
            self._runs_in_place = False
            log.warning("%s goes on copying what it reads and writes: %s", self._engine.name, error)
            return None
        kept.put(places, graph)
        return graph

    def _capture(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], *, warm: bool) -> CapturedGraph:
        device = self._engine.device
        caller, side = torch.cuda.current_stream(device), streams.own(device, "capture")
        with _capturing, torch.cuda.stream(side):
            if warm:
                side.wait_stream(caller)
                self.context.enqueue(inputs, outputs, side.cuda_stream)
                side.synchronize()
            try:
                return CapturedGraph(side, lambda: self.context.enqueue(inputs, outputs, side.cuda_stream))
            except RuntimeError as error:
                raise _NotCapturable(str(error)) from error


def _copy(to: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copy tensors of like shapes, several in one kernel where their memory allows it."""
    if len(to) == 1:
        to[0].copy_(values[0])
    elif to:
        torch._foreach_copy_(list(to), list(values))


def _make_place(kept: Recent[Any, Any], device: torch.device) -> None:
    if kept.full:
        # What is displaced may still be running.
        torch.cuda.current_stream(device).synchronize()
        kept.displace()


class GraphCache:
    """The graphs of one engine by input shapes, the least recently used displaced first.

    Not safe under threads by itself; whoever runs it holds a lock.

    Args:
        enabled: whether to capture at all.
    """

    def __init__(self, engine: Engine, scratch: torch.Tensor, *, enabled: bool) -> None:
        self._engine = engine
        self._scratch = scratch
        # Values that decide shapes are read when a run is enqueued: a graph would repeat the first ones.
        self._enabled = enabled and not engine.host_inputs
        self._graphs: Recent[Shapes, Graph] = Recent(CAPACITY, first=1, later=_DISPLACES)

    def __len__(self) -> int:
        return len(self._graphs)

    def __iter__(self) -> Iterator[Graph]:
        return iter(self._graphs)

    def peek(self, shapes: Shapes) -> Graph | None:
        """The graph for these shapes, if one is there."""
        return self._graphs.peek(shapes)

    def get(self, shapes: Shapes, inputs: Sequence[torch.Tensor]) -> Graph | None:
        """The graph for these shapes, captured if need be; None where the run is to be enqueued plainly."""
        graph = self._graphs.get(shapes)
        if graph is not None:
            return graph
        # A run on nothing may launch nothing.
        if not (self._enabled and self._engine.is_capturable) or any(0 in shape for shape in shapes):
            return None
        if not self._graphs.missed(shapes):
            return None
        _make_place(self._graphs, self._engine.device)
        try:
            graph = self._capture(inputs)
        except _NotCapturable as error:
            self._engine.is_capturable = False
            log.warning("%s runs without CUDA graphs, it cannot be captured: %s", self._engine.name, error)
            return None
        self._graphs.put(shapes, graph)
        return graph

    def _capture(self, inputs: Sequence[torch.Tensor]) -> Graph:
        shapes = tuple(tuple(value.shape) for value in inputs)
        context = Context(self._engine, self._scratch, self._engine.profile_of(shapes))
        return Graph(self._engine, context, inputs)
