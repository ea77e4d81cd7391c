"""A network made by hand with TensorRT's own calls, so that the interpreter is tested apart from the builder."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch2trt.reference.interpreter import Interpreter
from torch2trt.trt import flavour

FLAVOUR = flavour.load()
trt = FLAVOUR.trt
DTYPES = {
    torch.float32: trt.float32,
    torch.float16: trt.float16,
    torch.bfloat16: trt.bfloat16,
    torch.int8: trt.int8,
    torch.uint8: trt.uint8,
    torch.int32: trt.int32,
    torch.int64: trt.int64,
    torch.bool: trt.bool,
}


class Log(trt.ILogger):
    """TensorRT's errors, kept where tests can read them."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


LOG = Log()


@functools.cache
def builder() -> Any:
    return trt.Builder(LOG)


class BareNetwork:
    """A strongly typed network; floating point constants take ``dtype``."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.definition = builder().create_network(flag)
        self.constants: dict[str, Tensor] = {}

    def input(self, name: str, value: Tensor, shape: Sequence[int] | None = None) -> Any:
        return self.definition.add_input(name, DTYPES[value.dtype], shape or tuple(value.shape))

    def weights(self, value: Tensor | None) -> Any:
        if value is None:
            return trt.Weights(DTYPES[self.dtype])
        value = value.contiguous()
        if value.dtype == torch.bfloat16:
            # numpy has no such type: TensorRT gets a pointer, and the values reach the interpreter beside it
            self.constants[f"kept{len(self.constants)}"] = value
            return trt.Weights(trt.bfloat16, value.data_ptr(), value.numel())
        return np.array(value.numpy(), order="C")

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> Any:
        tensor = torch.as_tensor(value)
        if tensor.is_floating_point():
            tensor = tensor.to(dtype or self.dtype)
        elif dtype is not None:
            tensor = tensor.to(dtype)
        layer = self.definition.add_constant(tuple(tensor.shape), self.weights(tensor))
        if tensor.dtype == torch.bfloat16:
            self.constants[layer.name] = tensor
        return layer.get_output(0)

    def ints(self, *values: int) -> Any:
        return self.constant(torch.tensor(values, dtype=torch.int32))

    def int(self, value: int) -> Any:
        return self.constant(torch.tensor(value, dtype=torch.int32))

    def output(self, *tensors: Any) -> None:
        for i, tensor in enumerate(tensors, start=self.definition.num_outputs):
            # TensorRT refuses a network input as an output
            tensor = self.definition.add_identity(tensor).get_output(0) if tensor.is_network_input else tensor
            tensor.name = f"out{i}"
            self.definition.mark_output(tensor)

    def interpreter(self, **options: Any) -> Interpreter:
        return Interpreter(FLAVOUR, self.definition, self.constants, **options)

    def run(self, *inputs: Tensor, **options: Any) -> list[Tensor]:
        """The outputs for inputs in the order in which they were added."""
        names = [self.definition.get_input(i).name for i in range(self.definition.num_inputs)]
        return list(self.interpreter(**options).run(dict(zip(names, inputs, strict=True))).values())


def first(layer: Any) -> Any:
    return layer.get_output(0)


def build(net: BareNetwork) -> Any:
    """A plan, built as fast as TensorRT can."""
    config = builder().create_builder_config()
    config.builder_optimization_level = 0
    LOG.errors.clear()
    plan = builder().build_serialized_network(net.definition, config)
    assert plan is not None, "\n".join(LOG.errors)
    return plan


def run_engine(net: BareNetwork, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Build an engine from the network and run it on the GPU; for outputs whose shapes the inputs' shapes tell."""
    engine = trt.Runtime(LOG).deserialize_cuda_engine(build(net))
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()
    buffers = [torch.empty(256, dtype=torch.uint8, device="cuda")]

    def address(value: Tensor) -> int:
        # An empty tensor has none, and TensorRT wants one.
        return value.data_ptr() or buffers[0].data_ptr()

    with torch.cuda.stream(stream):
        for i, value in enumerate(inputs):
            host = engine.get_tensor_location(f"in{i}") == trt.TensorLocation.HOST
            buffers.append(value.contiguous() if host else value.cuda().contiguous())
            context.set_input_shape(f"in{i}", tuple(value.shape))
            context.set_tensor_address(f"in{i}", address(buffers[-1]))
        results = []
        for i in range(net.definition.num_outputs):
            dtype = {value: key for key, value in DTYPES.items()}[engine.get_tensor_dtype(f"out{i}")]
            shape = tuple(context.get_tensor_shape(f"out{i}"))
            results.append(torch.empty(shape, dtype=dtype, device="cuda"))
            context.set_tensor_address(f"out{i}", address(results[-1]))
        assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return results
