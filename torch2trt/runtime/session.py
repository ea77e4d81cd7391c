"""Running one engine: on the caller's stream, replaying CUDA graphs, from any number of threads.

Everything is enqueued on the stream that is current when it is called, so torch's allocator may reuse inputs and
outputs as for any operator of its own. Two cases need more:

- A context and its scratch memory serve one run at a time. Other streams get other ones from a pool, up to a number,
  and then wait (:mod:`torch2trt.runtime.context_pool`).
- On the default stream TensorRT would synchronise with the host in every run. There, a run that is not a graph replay
  goes through a side stream that the default stream waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from torch2trt.runtime import streams
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.context import Context, Engine, Outputs
from torch2trt.runtime.context_pool import ContextPool, EngineContexts
from torch2trt.runtime.profiles import Shapes


class Session:
    """One engine, deserialised when it is first needed.

    Args:
        artifact: what to run.
        device: the CUDA device to run on; unset: the one that is current when it is first needed.
        pool: of contexts, of engines on the same device that run one after the other; unset: its own.
    """

    def __init__(self, artifact: Artifact, device: torch.device | None = None, pool: ContextPool | None = None) -> None:
        self.artifact = artifact
        self.device = device
        self._engine: Engine | None = None
        self._pool = pool or pool_for(artifact)
        self._lock = threading.Lock()

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
                engine = Engine(self.artifact, self.device)
                self._pool.add(engine)
                self.device = engine.device
                self._engine = engine
            return self._engine

    @property
    def pool(self) -> ContextPool:
        """Where its contexts come from."""
        return self._pool

    def share(self, pool: ContextPool) -> None:
        """Draw on a pool, as the argument is; changes nothing once the engine is on its device."""
        with self._lock:
            if self._engine is None:
                self._pool = pool

    @property
    def contexts(self) -> list[EngineContexts]:
        """Its contexts, of all that are in the pool, the last used first."""
        return [] if self._engine is None else self._pool.contexts(self._engine)

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
        stream = streams.current_handle(index)
        if torch.cuda.is_current_stream_capturing():
            return self._run_in_capture(engine, inputs, shapes, stream)
        taken = self._pool.take(stream)
        try:
            contexts = taken.of(engine)
            graph = contexts.graphs.get(shapes, inputs)
            if graph is not None:
                return graph.replay(inputs, stream)
            plain = contexts.plain(shapes)
            placed, outputs = plain.prepare(inputs, shapes)
            if stream != 0:
                return plain.enqueue(placed, outputs, stream)
            return self._enqueue_beside_default_stream(plain, placed, outputs)
        finally:
            taken.lock.release()

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
        found = self._pool.warm(engine, shapes, stream)
        if found is None:
            raise engine.error(
                "called with these shapes for the first time inside a CUDA graph capture; call it before"
            )
        taken, context = found
        try:
            placed, outputs = context.prepare(inputs, shapes)
            if any(output is None for output in outputs):
                raise engine.error("has outputs whose sizes depend on data, so it cannot be part of a CUDA graph")
            taken.lent = True
            return context.enqueue(placed, outputs, stream)
        finally:
            taken.lock.release()


def pool_for(artifact: Artifact) -> ContextPool:
    """A pool of contexts as the settings of an artifact have it."""
    settings = artifact.settings
    return ContextPool(settings.max_concurrent_runs, cuda_graphs=settings.cuda_graphs)
