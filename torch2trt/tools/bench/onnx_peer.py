"""The peer: ``torch.onnx.export``, TensorRT's own parser, and a CUDA graph over static buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt.engine import builder
from torch2trt.errors import EngineError
from torch2trt.graph.signature import Signature
from torch2trt.settings import Settings
from torch2trt.tools.bench.case import tensors
from torch2trt.trt.dtypes import torch_dtypes
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.logger import make_logger
from torch2trt.trt.parser import ParsedNetwork

_ALIGNMENT = 256  # bytes


class _Flat(nn.Module):
    """A module from tensors to tensors, so that either exporter takes any structure of arguments and results."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self._leaves, self._spec = pytree.tree_flatten((args, dict(kwargs)))
        self._places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, torch.Tensor)]
        self.example = tuple(self._leaves[place] for place in self._places)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = list(self._leaves)
        for place, value in zip(self._places, values, strict=True):
            leaves[place] = value
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return tuple(tensors(self.module(*args, **kwargs)))


def export(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path, exporter: str) -> None:
    """Write a module as ONNX, its tensors named ``in0``, …, ``out0``, … in the order of the flattened call.

    Args:
        exporter: ``dynamo`` or ``torchscript``.
    """
    flat = _Flat(module, args, kwargs).eval()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The fused operators that it takes exist in no ONNX.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            torch.onnx.export(
                flat,
                flat.example,
                str(path),
                dynamo=exporter == "dynamo",
                input_names=[f"in{number}" for number in range(len(flat.example))],
                output_names=[f"out{number}" for number in range(len(flat(*flat.example)))],
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def build(path: Path, flavour: Flavour, settings: Settings, *, name: str) -> bytes:
    """Parse an ONNX file into a strongly typed network, and build it with the settings that our own build gets.

    Raises:
        UnsupportedOpsError: the parser refused it.
        BuildError: TensorRT built nothing.
    """
    network = ParsedNetwork(flavour, path.read_bytes(), path)
    # Every shape is static, so there is no profile to make of a signature.
    nothing = pytree.tree_structure(((), {}))
    return builder.build(network, Signature((), (), nothing, nothing), settings, name=name)


class StaticEngine:
    """A plan that runs on static buffers, as the inner loop of a deployment does.

    Args:
        plan: from :func:`build`.

    Raises:
        EngineError: TensorRT refused the plan.
    """

    def __init__(self, plan: bytes, flavour: Flavour, *, name: str) -> None:
        self._name = name
        self._trt = flavour.trt
        logger = make_logger(flavour)
        with logger.capture() as errors:
            self._runtime = flavour.trt.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            reasons = "; ".join(dict.fromkeys(errors))
            raise EngineError(f"TensorRT cannot deserialise the plan: {reasons}", subject=name)
        dtypes = torch_dtypes(flavour)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._dtypes = {tensor: dtypes[self._engine.get_tensor_dtype(tensor)] for tensor in names}
        self._outputs = sorted((tensor for tensor in names if tensor.startswith("out")), key=lambda out: int(out[3:]))
        size = max(int(self._engine.device_memory_size_v2), _ALIGNMENT)
        self._scratch = torch.empty(size, dtype=torch.uint8, device="cuda")

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        """A function that enqueues a run on these inputs, on the current stream, and returns its static outputs.

        Raises:
            EngineError: an input has another dtype than the engine's, or TensorRT refused to run.
        """
        trt, engine = self._trt, self._engine
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Only one of them runs at a time.
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        named = {
            out: torch.empty(tuple(engine.get_tensor_shape(out)), dtype=self._dtypes[out], device="cuda")
            for out in self._outputs
        }
        # An exporter drops inputs that the result does not depend on.
        named |= {f"in{i}": value.contiguous() for i, value in enumerate(inputs) if f"in{i}" in self._dtypes}
        for tensor, value in named.items():
            if value.dtype != self._dtypes[tensor]:
                raise EngineError(f"{tensor} is {self._dtypes[tensor]} in the engine, not {value.dtype}")
            context.set_tensor_address(tensor, value.data_ptr())

        def run() -> list[torch.Tensor]:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise EngineError("TensorRT refused to run", subject=self._name)
            return [named[out] for out in self._outputs]

        return run
