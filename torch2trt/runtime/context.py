"""TensorRT's own runtime objects behind one plan: the deserialised engine, and execution contexts of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from torch2trt.errors import ArtifactMismatchError, EngineError, NoGPUError, UnsupportedGPUError
from torch2trt.runtime.artifact import Artifact, gpu_here
from torch2trt.runtime.output_allocator import SizedByData
from torch2trt.runtime.profiles import Shapes, nearest, profiles
from torch2trt.trt import flavour as flavours
from torch2trt.trt.dtypes import torch_dtypes
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.logger import make_logger
from torch2trt.trt.plugins import register

Outputs = Sequence[torch.Tensor | None]
"""Tensors to write into, None where their sizes depend on data."""

_CHOICES_KEPT = 1024  # combinations of shapes whose profile is remembered
ALIGNMENT = 256  # bytes; TensorRT's kernels rely on it


class Engine:
    """A deserialised engine on one GPU.

    Args:
        artifact: its plan and signature.
        device: the CUDA device to load it on; unset: the current one.

    Raises:
        NoGPUError: there is no GPU.
        UnsupportedGPUError: the GPU is none that the flavour serves.
        FlavourNotFoundError, FlavourTooOldError: its TensorRT package is not installed, or too old.
        ArtifactMismatchError: it was built by another TensorRT version or for another GPU.
        EngineError: TensorRT refuses the plan, or it is not what the signature says.
    """

    def __init__(self, artifact: Artifact, device: torch.device | None = None) -> None:
        if not torch.cuda.is_available():
            raise NoGPUError(
                "engines run on NVIDIA GPUs, and torch finds none on this machine",
                subject=artifact.name,
                hint=".reference(...) runs the compiled network on the CPU",
            )
        self.name = artifact.name
        self.device = device or torch.device("cuda", torch.cuda.current_device())
        self.inputs = tuple(leaf.name for leaf in artifact.signature.tensor_inputs)
        dtypes = {leaf.name: leaf.spec.dtype for leaf in artifact.signature.tensor_outputs}
        self.outputs = tuple(dtypes)
        self.output_dtypes = tuple(dtypes.values())
        with torch.cuda.device(self.device):
            flavour = _flavour(artifact)
            self.trt = flavour.trt
            self.logger = make_logger(flavour)
            if artifact.calls:
                register(flavour, artifact.calls)
            with self.logger.capture() as errors:
                # The runtime goes with its last engine, so it is kept beside it.
                self._runtime = self.trt.Runtime(self.logger)
                self.handle = self._runtime.deserialize_cuda_engine(artifact.plan)
            if self.handle is None:
                raise self.error("TensorRT cannot deserialise the plan", errors)
        self.has_profiles = len(artifact.signature.profiles) > 1
        """Whether there are several optimization profiles to choose from."""
        if self.has_profiles:
            self._nearest = functools.lru_cache(_CHOICES_KEPT)(functools.partial(nearest, profiles(artifact.signature)))
        self._check(artifact, flavour)
        signature = artifact.signature
        self._reads = tuple(signature.tensor_inputs)
        self._writes = tuple({leaf.name: leaf for leaf in signature.tensor_outputs}.values())
        self.reorders = any(leaf.order for leaf in (*self._reads, *self._writes))
        """Whether an input or output has its axes in another order here than for the caller."""
        on_host = [self.handle.get_tensor_location(name) == self.trt.TensorLocation.HOST for name in self.inputs]
        self.host_inputs = frozenset(name for name, host in zip(self.inputs, on_host, strict=True) if host)
        """Inputs whose values decide shapes: TensorRT reads them from host memory when it enqueues."""
        self.scratch_bytes = max(int(self.handle.device_memory_size_v2), ALIGNMENT)
        """Bytes of device memory for the activations of one run at a time."""
        self.is_capturable = True
        """Whether no capture of a CUDA graph has failed."""
        self.dynamic_inputs = tuple(
            (position, name)
            for position, name in enumerate(self.inputs)
            if -1 in tuple(self.handle.get_tensor_shape(name))
        )

    def error(self, what: str, logged: Sequence[str] = ()) -> EngineError:
        """The error for this engine, with what TensorRT logged."""
        return EngineError(f"{what}: {'; '.join(dict.fromkeys(logged))}" if logged else what, subject=self.name)

    def as_stored(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The inputs with their axes as the engine has them, as views."""
        return [leaf.store(value) for leaf, value in zip(self._reads, inputs, strict=True)]

    def as_returned(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs with their axes as the caller has them, as views."""
        return [leaf.show(value) for leaf, value in zip(self._writes, outputs, strict=True)]

    def new_scratch(self) -> torch.Tensor:
        """Device memory for the activations of one run at a time, in bytes."""
        return torch.empty(self.scratch_bytes, dtype=torch.uint8, device=self.device)

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of its weights; None where TensorRT does not tell."""
        if not (hasattr(self.handle, "get_engine_stat") and hasattr(self.trt, "EngineStat")):
            return None
        size = int(self.handle.get_engine_stat(self.trt.EngineStat.TOTAL_WEIGHTS_SIZE))
        return size if size >= 0 else None

    def profile_of(self, shapes: Shapes) -> int:
        """The index of the optimization profile that runs these shapes.

        Raises:
            EngineError: none holds them.
        """
        found = self._nearest(shapes) if self.has_profiles else 0
        if found is None:
            raise self.error(f"no optimization profile holds the shapes {[list(shape) for shape in shapes]}")
        return found

    def _check(self, artifact: Artifact, flavour: Flavour) -> None:
        names = [self.handle.get_tensor_name(index) for index in range(self.handle.num_io_tensors)]
        if set(names) != {*self.inputs, *self.outputs}:
            raise self.error(f"has the tensors {sorted(names)}, its signature {sorted((*self.inputs, *self.outputs))}")
        count = self.handle.num_optimization_profiles
        if self.has_profiles and count != len(artifact.signature.profiles):
            raise self.error(f"has {count} optimization profile(s), its signature {len(artifact.signature.profiles)}")
        known = torch_dtypes(flavour)
        for leaf in (*artifact.signature.tensor_inputs, *artifact.signature.tensor_outputs):
            dtype = known.get(self.handle.get_tensor_dtype(leaf.name))
            if dtype != leaf.spec.dtype:
                raise self.error(f"{leaf.name!r} is {dtype} in the engine, {leaf.spec.dtype} in its signature")
        for name in self.outputs:
            if self.handle.get_tensor_location(name) == self.trt.TensorLocation.HOST:
                raise self.error(f"the output {name!r} is a shape tensor in host memory, which is not supported")


class Context:
    """An execution context: runs the engine at one combination of shapes at a time.

    Args:
        engine: what it runs.
        scratch: of at least :attr:`Engine.scratch_bytes`; contexts that never run at the same time may share one.
        profile: index of the optimization profile that holds its shapes, once and for all.
    """

    def __init__(self, engine: Engine, scratch: torch.Tensor, profile: int = 0) -> None:
        self._engine = engine
        self._nowhere = scratch.data_ptr()
        with engine.logger.capture() as errors:
            strategy = engine.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._context = engine.handle.create_execution_context(strategy)
            if self._context is None:
                raise engine.error("TensorRT created no execution context", errors)
            if engine.has_profiles:
                stream = torch.cuda.current_stream(engine.device)
                if not self._context.set_optimization_profile_async(profile, stream.cuda_stream):
                    raise engine.error(f"TensorRT refused the optimization profile {profile}", errors)
                # Runs may be on other streams.
                stream.synchronize()
        self._context.set_device_memory(scratch.data_ptr(), scratch.numel())
        self.shapes: Shapes | None = None
        """The shapes it is set to."""
        self._output_shapes: list[tuple[int, ...]] = []
        self._sized_by_data = SizedByData(engine.trt, engine.device)

    def prepare(self, inputs: Sequence[torch.Tensor], shapes: Shapes) -> tuple[list[torch.Tensor], Outputs]:
        """Inputs as TensorRT needs them, and fresh outputs, for :meth:`enqueue`.

        Args:
            inputs: checked, in the engine's order, of any strides.
            shapes: theirs.

        Raises:
            EngineError: TensorRT refused a shape.
        """
        engine = self._engine
        placed = [self._place(name, value) for name, value in zip(engine.inputs, inputs, strict=True)]
        outputs = [
            None if -1 in shape else torch.empty(shape, dtype=dtype, device=engine.device)
            for shape, dtype in zip(self.output_shapes(placed, shapes), engine.output_dtypes, strict=True)
        ]
        return placed, outputs

    def output_shapes(self, inputs: Sequence[torch.Tensor], shapes: Shapes) -> list[tuple[int, ...]]:
        """Set the input shapes and find those of the outputs, -1 where a size depends on data.

        Raises:
            EngineError: TensorRT refused a shape.
        """
        if shapes == self.shapes and not self._engine.host_inputs:
            return self._output_shapes
        engine = self._engine
        with engine.logger.capture() as errors:
            self.shapes = None
            for position, name in engine.dynamic_inputs:
                if not self._context.set_input_shape(name, tuple(shapes[position])):
                    raise engine.error(f"TensorRT refused the shape {list(shapes[position])} of {name!r}", errors)
            for name, value in zip(engine.inputs, inputs, strict=True):
                if name in engine.host_inputs:
                    self._context.set_tensor_address(name, value.data_ptr())
            if engine.host_inputs and (missing := self._context.infer_shapes()):
                raise engine.error(f"TensorRT cannot infer shapes without {missing}", errors)
            found = [tuple(self._context.get_tensor_shape(name)) for name in engine.outputs]
            for name, shape in zip(engine.outputs, found, strict=True):
                if -1 in shape and not self._context.set_output_allocator(name, self._sized_by_data.handle):
                    raise engine.error(f"TensorRT refused the allocator of the output {name!r}", errors)
        self.shapes, self._output_shapes = shapes, found
        return found

    def watch(self, profiler: Any) -> None:
        """Tell an ``IProfiler`` the time of each layer from now on; runs then wait until they are done."""
        self._context.profiler = profiler

    def describe(self) -> str:
        """What TensorRT's inspector says of the engine at the shapes that it is set to, as JSON; empty without one."""
        # Of the first of several profiles, TensorRT 10.6 tells nothing at given shapes.
        return self._told(self._context) or self._told(None)

    def _told(self, context: Any) -> str:
        inspector = self._engine.handle.create_engine_inspector()
        if inspector is None:
            return ""
        if context is not None:
            inspector.execution_context = context
        return str(inspector.get_engine_information(self._engine.trt.LayerInformationFormat.JSON))

    def enqueue(self, inputs: Sequence[torch.Tensor], outputs: Outputs, stream: int) -> list[torch.Tensor]:
        """Enqueue one run; where sizes depend on data, TensorRT waits until they are known.

        Args:
            inputs: contiguous, aligned, and where TensorRT reads them.
            outputs: likewise, None where sizes depend on data; written when the stream gets there.
            stream: handle of a CUDA stream.

        Returns:
            The outputs, fresh ones where there were none.

        Raises:
            EngineError: TensorRT refused it.
            torch.cuda.OutOfMemoryError: there is no memory for an output whose size depends on data.
        """
        engine, bind = self._engine, self._context.set_tensor_address
        # An empty tensor has no address, and TensorRT takes no null pointer.
        for name, value in zip(engine.inputs, inputs, strict=True):
            bind(name, value.data_ptr() or self._nowhere)
        for name, output in zip(engine.outputs, outputs, strict=True):
            if output is not None:
                bind(name, output.data_ptr() or self._nowhere)
        self._sized_by_data.begin(stream)
        with engine.logger.capture() as errors:
            if not self._context.execute_async_v3(stream):
                raise self._sized_by_data.error or engine.error("TensorRT refused to run", errors)
        made = [
            self._sized(name, dtype) if output is None else output
            for name, dtype, output in zip(engine.outputs, engine.output_dtypes, outputs, strict=True)
        ]
        self._sized_by_data.end()
        return made

    def _sized(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        found = self._sized_by_data.take(name, dtype)
        if found is None:
            raise self._engine.error(f"TensorRT ran and did not ask for memory for the output {name!r}")
        return found

    def _place(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """The input as TensorRT reads it: contiguous, aligned, and in host memory where its values decide shapes."""
        if name in self._engine.host_inputs:
            value = value.cpu()
        # Lazily negated memory and views that start in the middle of an allocation are rare enough to copy.
        value = value.resolve_neg().contiguous()
        return value.clone() if value.data_ptr() % ALIGNMENT else value


def _flavour(artifact: Artifact) -> Flavour:
    """The artifact's flavour, when it can run the plan on the current GPU."""
    finding = flavours.find(artifact.flavour)
    here = gpu_here()
    if finding.version is not None and artifact.flavour == flavours.TENSORRT_RTX and finding.problem:
        raise UnsupportedGPUError(finding.problem, subject=artifact.flavour, hint=finding.hint)
    flavour = flavours.load(artifact.flavour)
    hint = "compile it again on this machine"
    if flavour.version_text != artifact.flavour_version:
        raise ArtifactMismatchError(
            f"built by {artifact.flavour} {artifact.flavour_version}, this machine has {flavour.version_text}",
            subject=artifact.name,
            hint=f"{hint}, or install that version",
        )
    if artifact.gpu is not None and artifact.gpu != here:
        raise ArtifactMismatchError(
            f"built for {artifact.gpu}, this machine has {here}", subject=artifact.name, hint=hint
        )
    return flavour
