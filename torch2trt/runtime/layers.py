"""The layers of an engine, one by one: what TensorRT says of them, and how long they take."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch2trt.runtime.context import Context, Engine, Outputs

_WARM = 3  # runs before the first that is timed, without and with the profiler


@dataclass(frozen=True)
class LayerTimes:
    """One engine at one combination of shapes."""

    information: str
    """The inspector's JSON, for :func:`torch2trt.trt.inspector.layers`."""
    ms: dict[str, float]
    """The median of each layer's time, in the order in which they first ran; all iterations of a loop together."""
    inputs: list[torch.Tensor]
    """As TensorRT reads them."""
    outputs: list[torch.Tensor]
    """Of the last run."""


def information_at(engine: Engine, inputs: Sequence[torch.Tensor]) -> str:
    """What TensorRT's inspector says of an engine at a call's shapes, in the profile that runs them.

    The call is run once, on a stream of its own: before that, the inspector of TensorRT 10.6 lists no layers.

    Args:
        inputs: in the engine's order, with its dtypes, of shapes that a profile of the engine holds.

    Raises:
        EngineError: TensorRT refused a shape or the run.
    """
    with _beside(engine) as side:
        context, placed, buffers = _prepared(engine, inputs)
        context.enqueue(placed, buffers, side.cuda_stream)
        side.synchronize()
        return context.describe()


def time_layers(engine: Engine, inputs: Sequence[torch.Tensor], *, runs: int) -> LayerTimes:
    """Run an engine with TensorRT's profiler, on a stream of its own, and wait for it.

    Args:
        inputs: in the engine's order, with its dtypes, of shapes that a profile of the engine holds.
        runs: how often it is timed.

    Raises:
        EngineError: TensorRT refused a shape or a run.
    """
    profiler = _profiler_class(engine.trt)()
    with _beside(engine) as side:
        context, placed, buffers = _prepared(engine, inputs)
        for _ in range(_WARM):
            outputs = context.enqueue(placed, buffers, side.cuda_stream)
        side.synchronize()
        information = context.describe()
        context.watch(profiler)
        taken: list[dict[str, float]] = []
        for _ in range(_WARM + runs):
            profiler.begin()
            outputs = context.enqueue(placed, buffers, side.cuda_stream)
            side.synchronize()
            taken.append(profiler.ms)
    timed = taken[_WARM:]
    names = dict.fromkeys(name for run in timed for name in run)
    ms = {name: statistics.median(run.get(name, 0.0) for run in timed) for name in names}
    return LayerTimes(information, ms, placed, engine.as_returned(outputs))


@contextlib.contextmanager
def _beside(engine: Engine) -> Iterator[torch.cuda.Stream]:
    """Within, what is enqueued on an engine's device is on a new stream, after what the caller's still has to do."""
    with torch.cuda.device(engine.device):
        side = torch.cuda.Stream(engine.device)
        side.wait_stream(torch.cuda.current_stream(engine.device))
        with torch.cuda.stream(side):
            yield side


def _prepared(engine: Engine, inputs: Sequence[torch.Tensor]) -> tuple[Context, list[torch.Tensor], Outputs]:
    """A context for a call's shapes on memory of its own, the inputs where TensorRT reads them, and the outputs."""
    inputs = engine.as_stored(inputs)
    shapes = tuple(tuple(value.shape) for value in inputs)
    context = Context(engine, engine.new_scratch(), engine.profile_of(shapes))
    return context, *context.prepare(inputs, shapes)


@functools.cache
def _profiler_class(trt: Any) -> Any:
    class LayerProfiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: dict[str, float] = {}

        def begin(self) -> None:
            self.ms = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            # A layer inside a loop is reported once for each iteration.
            self.ms[layer_name] = self.ms.get(layer_name, 0.0) + ms

    return LayerProfiler
