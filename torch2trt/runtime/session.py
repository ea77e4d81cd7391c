"""Running one engine: on the caller's stream, replaying CUDA graphs, from any number of threads.

Everything is enqueued on the stream that is current when it is called, so torch's allocator may reuse inputs and
outputs as for any operator of its own. Two cases need more:

- A context and its scratch memory serve one run at a time. When the caller's stream changes, the new one first waits
  for what the last one still has to do.
- On the default stream TensorRT would synchronise with the host in every run. There, a run that is not a graph replay
  goes through a side stream that the default stream waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import torch

from torch2trt.runtime import streams
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.context import Context, Engine, Outputs
from torch2trt.runtime.cuda_graphs import GraphCache
from torch2trt.runtime.profiles import Shapes


class _Contexts:
    """The contexts that run in turns on one scratch memory."""

    def __init__(self, engine: Engine, *, cuda_graphs: bool) -> None:
        with torch.inference_mode(False):
            self.scratch = engine.new_scratch()
        self.graphs = GraphCache(engine, self.scratch, enabled=cuda_graphs)
        self._engine = engine
        self._plain: dict[int, Context] = {}
        self.lent = False
        """Whether a CUDA graph that the caller captured has baked in one of them."""

    def plain(self, shapes: Shapes) -> Context:
        """The context for runs at these shapes that are no graph replay: there is one for each optimization profile."""
        profile = self._engine.profile_of(shapes)
        if profile not in self._plain:
            self._plain[profile] = Context(self._engine, self.scratch, profile)
        return self._plain[profile]

    def tensors(self) -> Iterator[torch.Tensor]:
        """The memory that outlives a run."""
        yield self.scratch
        for graph in self.graphs:
            yield from graph.inputs
            yield from graph.outputs

    def warm(self, shapes: Shapes) -> Context | None:
        """A context that has already run at these shapes."""
        graph = self.graphs.peek(shapes)
        if graph is not None:
            return graph.context
        return next((context for context in self._plain.values() if context.shapes == shapes), None)


class Session:
    """One engine, deserialised when it is first needed.

    Args:
        artifact: what to run.
        device: the CUDA device to run on; unset: the one that is current when it is first needed.
    """

    def __init__(self, artifact: Artifact, device: torch.device | None = None) -> None:
        self.artifact = artifact
        self.device = device
        self._engine: Engine | None = None
        self._contexts: _Contexts | None = None
        self._lent: list[_Contexts] = []
        self._lock = threading.RLock()
        self._stream: torch.cuda.Stream | None = None
        self._stream_handle = -1

    @property
    def is_open(self) -> bool:
        """Whether the engine is on its device."""
        return self._engine is not None

    def open(self) -> Engine:
        """Deserialise the engine, once.

        Raises:
            NoGPUError, UnsupportedGPUError, FlavourNotFoundError, ArtifactMismatchError, EngineError: as
                :class:`torch2trt.runtime.context.Engine` says.
        """
        with self._lock:
            if self._engine is None:
                self._engine = Engine(self.artifact, self.device)
                self.device = self._engine.device
            return self._engine

    def run(self, inputs: Sequence[torch.Tensor], shapes: Shapes) -> list[torch.Tensor]:
        """Enqueue one run on the caller's current stream.

        Args:
            inputs: in the signature's order, with its dtypes and ranks, on the engine's device; of any strides.
            shapes: theirs.

        Returns:
            Fresh outputs in the order of the signature's distinct output names.

        Raises:
            EngineError: TensorRT refused it, or a CUDA graph is being captured and the engine is not warm.
        """
        engine = self._engine or self.open()
        if not engine.reorders:
            return self._run(engine, inputs, shapes)
        stored = engine.as_stored(inputs)
        return engine.as_returned(self._run(engine, stored, tuple([tuple(value.shape) for value in stored])))

    def _run(self, engine: Engine, inputs: Sequence[torch.Tensor], shapes: Shapes) -> list[torch.Tensor]:
        """Enqueue a run on inputs with their axes as the engine has them."""
        index = engine.device.index
        if torch.cuda.current_device() != index:
            with torch.cuda.device(index):
                return self._run(engine, inputs, shapes)
        stream = _current_stream(index)
        with self._lock:
            if torch.cuda.is_current_stream_capturing():
                return self._run_in_capture(engine, inputs, shapes, stream)
            contexts = self._contexts
            if contexts is None or contexts.lent:
                contexts = self._renew(engine)
            if stream != self._stream_handle:
                self._hand_over(contexts, index)
            graph = contexts.graphs.get(shapes, inputs)
            if graph is not None:
                return graph.replay(inputs)
            plain = contexts.plain(shapes)
            placed, outputs = plain.prepare(inputs, shapes)
            if stream != 0:
                return plain.enqueue(placed, outputs, stream)
            return self._enqueue_beside_default_stream(plain, placed, outputs)

    def _renew(self, engine: Engine) -> _Contexts:
        if self._contexts is not None:
            # A graph of the caller's uses them; they live as long as the engine.
            self._lent.append(self._contexts)
        self._contexts = _Contexts(engine, cuda_graphs=self.artifact.settings.cuda_graphs)
        self._stream, self._stream_handle = None, -1
        return self._contexts

    def _hand_over(self, contexts: _Contexts, index: int) -> None:
        """Make the caller's stream the one that uses the contexts."""
        current = torch.cuda.current_stream(index)
        if self._stream is not None:
            current.wait_event(self._stream.record_event())
            for tensor in contexts.tensors():
                tensor.record_stream(current)
        self._stream, self._stream_handle = current, current.cuda_stream

    def _enqueue_beside_default_stream(
        self, context: Context, inputs: Sequence[torch.Tensor], outputs: Outputs
    ) -> list[torch.Tensor]:
        # Inputs and outputs are the default stream's, which waits before it goes on: no record_stream is needed.
        assert self.device is not None
        current, side = torch.cuda.current_stream(self.device), streams.own(self.device, "beside the default")
        side.wait_stream(current)
        made = context.enqueue(inputs, outputs, side.cuda_stream)
        current.wait_stream(side)
        return made

    def _run_in_capture(
        self, engine: Engine, inputs: Sequence[torch.Tensor], shapes: Shapes, stream: int
    ) -> list[torch.Tensor]:
        """Become part of a graph that the caller captures, with a context that is then no longer ours to change."""
        if engine.host_inputs:
            raise engine.error("reads input values on the host, so it cannot be part of a CUDA graph")
        context = self._contexts.warm(shapes) if self._contexts is not None else None
        if self._contexts is None or context is None:
            raise engine.error(
                "called with these shapes for the first time inside a CUDA graph capture; call it before"
            )
        placed, outputs = context.prepare(inputs, shapes)
        if any(output is None for output in outputs):
            raise engine.error("has outputs whose sizes depend on data, so it cannot be part of a CUDA graph")
        self._contexts.lent = True
        return context.enqueue(placed, outputs, stream)


# Handle of a device's current stream; torch.cuda.current_stream takes 40 times as long.
_current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", None) or (
    lambda index: torch.cuda.current_stream(index).cuda_stream
)
