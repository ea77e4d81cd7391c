"""Running sums on a TensorRT without the cumulative layer, and the one form of that layer where there is one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.export import Dim

from tests.cases import normal
from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.reference.interpreter import Interpreter
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours


class Sums(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.cumsum(-1), x.cumsum(0), x.cumsum(1, dtype=torch.float32)


@pytest.fixture
def old_flavour() -> flavours.Flavour:
    """This flavour as if it were too old for the layer."""
    old = dataclasses.replace(flavours.load(), version=(1, 0))
    assert not old.has("cumulative")
    return old


@pytest.mark.parametrize(
    "x",
    [
        normal(2, 3, 4),
        normal(2, 3, 4).half(),
        (torch.arange(24) * 183333 - 2000000).reshape(2, 3, 4),
        torch.arange(24).reshape(2, 3, 4).remainder(5).bool(),
    ],
    ids=["float32", "float16", "int64", "bool"],
)
def test_without_the_layer(x: torch.Tensor, old_flavour: flavours.Flavour) -> None:
    shapes = {"x": {0: Dim("batch", min=1, max=5), 2: Dim("length", min=2, max=7)}}
    program = api.optimize(api.capture(Sums().eval(), (x,), dynamic_shapes=shapes), Settings())
    net = lower(program, old_flavour)
    kinds = {net.definition.get_layer(index).type.name for index in range(net.definition.num_layers)}
    assert "CUMULATIVE" not in kinds
    interpreter = Interpreter(old_flavour, net.definition, net.constants)
    (name,) = (leaf.name for leaf in program.signature.tensor_inputs)
    for value in (x, x[:1, :, :3]):
        found = interpreter.run({name: value})
        for output, exact in zip(program.output_names, Sums()(value), strict=True):
            torch.testing.assert_close(found[output], exact, rtol=3e-3 if x.dtype == torch.float16 else 1e-5, atol=1e-5)


def test_layers_along_one_axis_only() -> None:
    program = api.optimize(api.capture(Sums().eval(), (normal(2, 3, 4),)), Settings())
    net = lower(program, flavours.load())
    layers = [net.definition.get_layer(index) for index in range(net.definition.num_layers)]
    sums = [layer for layer in layers if layer.type.name == "CUMULATIVE"]
    assert len(sums) == 3
    assert {len(layer.get_input(0).shape) for layer in sums} == {2}
    axes = {
        net.constants[layer.name].item() for layer in layers if layer.get_output(0).name == sums[0].get_input(1).name
    }
    assert axes == {1}
