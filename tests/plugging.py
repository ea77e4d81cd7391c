"""Calls of operators, and the layers that they become, where no TensorRT has plugins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv

from tests.plugin_operators import OPERATORS
from torch2trt import api
from torch2trt.converters import plugins as converters
from torch2trt.graph.operator_call import OperatorCall
from torch2trt.graph.program import Program
from torch2trt.settings import Settings
from torch2trt.sizes import Size, TensorSpec, symbol, volume
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor as NetworkTensor

ENTERPRISE = Flavour(flavours.TENSORRT, (10, 6), trt=None)
N = symbol("n")


def spec(*shape: Size, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(shape, dtype)


def optimized(module: nn.Module, *inputs: Tensor, shapes: Any = None, **settings: Any) -> Program:
    """What the passes make of a module where TensorRT has plugins."""
    return api.optimize(api.capture(module, inputs, dynamic_shapes=shapes), Settings.make(**settings), enterprise())


def spreading() -> OperatorCall:
    arguments = {"xs": [spec(2 * N + 1, 3), spec(4, 3)], "rows": FloorDiv(N, 2), "mode": "ones"}
    return OperatorCall.make(OPERATORS.spread.default, arguments, [spec(2 * N + 5 + FloorDiv(N, 2), 3)])


class Layer:
    """A plugin layer, with other layers' outputs for its own."""

    def __init__(self, outputs: list[Any]) -> None:
        self.name = self.metadata = ""
        self.outputs = outputs

    def get_output(self, index: int) -> Any:
        return self.outputs[index]


def _of_first(net: Network, itensor: Any, first: TensorSpec, spec: TensorSpec) -> Any:
    """A copy of a plugin's first input; where its result has fewer heads, or other dimensions, in that shape.

    Where it has one less, all elements are in that shape.
    """
    whole = NetworkTensor(net, itensor, first.shape, first.dtype)
    if len(spec.shape) > len(first.shape):
        return net.reshape(net.narrow(whole, -1, 0, volume(spec.shape[2:])), spec.shape).itensor
    if len(spec.shape) < len(first.shape):
        return net.reshape(whole, spec.shape).itensor
    if len(spec.shape) == 4 and spec.shape[2] != first.shape[2]:
        return net.narrow(whole, 2, 0, spec.shape[2]).itensor
    return net.add("add_identity", itensor).get_output(0)


Added = list[tuple[list[Any], Any]]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Added:
    """The inputs and plugins of the layers that are added; their outputs are copies of their first inputs."""
    found: Added = []
    add = Network.add

    def recorded(net: Network, method: str, *args: Any) -> Any:
        if method != "add_plugin_v3":
            return add(net, method, *args)
        inputs, shape_inputs, plugin = args
        assert not shape_inputs
        found.append((inputs, plugin))
        outputs = [_of_first(net, inputs[0], plugin.call.inputs[0], spec) for spec in plugin.call.outputs]
        return net.adopt(Layer(outputs), method)

    monkeypatch.setattr(Network, "add", recorded)
    monkeypatch.setattr(converters, "make_plugin", lambda flavour, call: SimpleNamespace(call=call))
    return found


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the first tensor that an operator in an engine is given lies channels-last, call by call."""
    found: list[bool] = []
    run = OperatorCall.run

    def noting(call: OperatorCall, inputs: Sequence[Tensor], places: Sequence[Tensor] | None) -> Sequence[Tensor]:
        found.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        return run(call, inputs, places)

    monkeypatch.setattr(OperatorCall, "run", noting)
    return found


def enterprise() -> Flavour:
    """What is here, as if it had plugins."""
    return dataclasses.replace(flavours.load(), name=flavours.TENSORRT, version=(10, 6))
