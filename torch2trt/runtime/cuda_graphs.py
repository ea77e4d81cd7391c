"""Captured CUDA graphs: one run of an engine at fixed shapes, replayed without TensorRT or Python in between."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence

import torch

from torch2trt.runtime.context import Context, Engine, Shapes

log = logging.getLogger(__name__)

CAPACITY = 8
"""Graphs kept per engine."""

# When all places are taken, a shape must come this often before it displaces another: a capture costs milliseconds,
# and shapes that change with every call would otherwise capture with every call.
_MISSES_BEFORE_EVICTION = 16
_MISSES_KEPT = 1024


class Graph:
    """One captured run, its input and output buffers, and the context whose shapes and scratch it has baked in."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        context: Context,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        self.context = context
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._graph = graph

    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on the current stream; the outputs are fresh tensors."""
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)
        self._graph.replay()
        return [buffer.clone() for buffer in self.outputs]


class GraphCache:
    """The graphs of one engine by input shapes, the least recently used displaced first.

    Not safe under threads by itself; its session holds a lock.

    Args:
        enabled: whether to capture at all.
    """

    def __init__(self, engine: Engine, scratch: torch.Tensor, *, enabled: bool) -> None:
        self._engine = engine
        self._scratch = scratch
        # Values that decide shapes are read when a run is enqueued: a graph would repeat the first ones.
        self._enabled = enabled and not engine.host_inputs
        self._graphs: OrderedDict[Shapes, Graph] = OrderedDict()
        self._misses: Counter[Shapes] = Counter()

    def __len__(self) -> int:
        return len(self._graphs)

    def __iter__(self) -> Iterator[Graph]:
        return iter(self._graphs.values())

    def peek(self, shapes: Shapes) -> Graph | None:
        """The graph for these shapes, if one is there."""
        return self._graphs.get(shapes)

    def get(self, shapes: Shapes, inputs: Sequence[torch.Tensor]) -> Graph | None:
        """The graph for these shapes, captured if need be; None where the run is to be enqueued plainly."""
        graph = self._graphs.get(shapes)
        if graph is not None:
            if len(self._graphs) > 1:
                self._graphs.move_to_end(shapes)
            return graph
        # A run on nothing may launch nothing, and torch warns of empty graphs.
        if not self._enabled or any(0 in shape for shape in shapes) or not self._make_place(shapes):
            return None
        graph = self._capture(shapes, inputs)
        if graph is not None:
            self._graphs[shapes] = graph
        return graph

    def _make_place(self, shapes: Shapes) -> bool:
        if len(self._graphs) < CAPACITY:
            return True
        if len(self._misses) >= _MISSES_KEPT:
            self._misses.clear()
        self._misses[shapes] += 1
        if self._misses[shapes] < _MISSES_BEFORE_EVICTION:
            return False
        del self._misses[shapes]
        # What is displaced may still be running.
        torch.cuda.current_stream(self._engine.device).synchronize()
        self._graphs.popitem(last=False)
        return True

    def _capture(self, shapes: Shapes, inputs: Sequence[torch.Tensor]) -> Graph | None:
        engine = self._engine
        device = engine.device
        context = Context(engine, self._scratch)
        # Buffers made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            buffers = [
                torch.empty(shape, dtype=value.dtype, device=device)
                for shape, value in zip(shapes, inputs, strict=True)
            ]
            outputs = [
                torch.empty(shape, dtype=dtype, device=device)
                for shape, dtype in zip(context.output_shapes(buffers, shapes), engine.output_dtypes, strict=True)
            ]
        # The first run after a change of shapes does what cannot be captured; it needs sound values, indices say.
        for buffer, value in zip(buffers, inputs, strict=True):
            buffer.copy_(value)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            context.enqueue(buffers, outputs, side.cuda_stream)
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may allocate memory meanwhile.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    context.enqueue(buffers, outputs, side.cuda_stream)
                finally:
                    graph.capture_end()
            except RuntimeError as error:
                self._enabled = False
                log.warning("%s runs without CUDA graphs, it cannot be captured: %s", engine.name, error)
                return None
        return Graph(graph, context, buffers, outputs)
