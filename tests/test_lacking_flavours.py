"""What a TensorRT that lacks a type or a kernel is given in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.cases import normal
from tests.harness import OpCase, OpModule, compare, truth
from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.errors import UnsupportedOpsError
from torch2trt.reference.interpreter import Interpreter
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours
from torch2trt.trt.network import Network

X = torch.arange(-3.0, 3).reshape(2, 3)
INT8 = X.to(torch.int8)


@pytest.fixture
def lacking() -> flavours.Flavour:
    """This flavour as if it were so old that the table of capabilities knows none of it."""
    return dataclasses.replace(flavours.load(), version=(1, 0))


def lowered(
    flavour: flavours.Flavour, function: Callable[..., Any], *inputs: torch.Tensor, weights: Sequence[torch.Tensor] = ()
) -> Network:
    """The network of a function of inputs and constant weights, after the interpreter has found it right."""
    constants = range(len(inputs), len(inputs) + len(weights))
    module = OpModule(OpCase("row", function, (*inputs, *weights), weights=constants)).eval()
    program = api.optimize(api.capture(module, inputs), Settings(precision=None))
    net = lower(program, flavour)
    names = [leaf.name for leaf in program.signature.tensor_inputs]
    found = Interpreter(flavour, net.definition, net.constants).run(dict(zip(names, inputs, strict=True)))
    compare([found[name] for name in program.output_names], truth(module, inputs), 1.0)
    return net


def types_into(net: Network, kind: str) -> set[str]:
    """The data types of the first inputs of all layers of a kind."""
    layers = [net.definition.get_layer(index) for index in range(net.definition.num_layers)]
    return {layer.get_input(0).dtype.name for layer in layers if layer.type.name == kind}


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_resizes_of_bfloat16(mode: str, lacking: flavours.Flavour) -> None:
    resize = partial(F.interpolate, scale_factor=2, mode=mode)
    image = normal(1, 2, 5, 6).bfloat16()
    assert types_into(lowered(lacking, resize, image), "RESIZE") == {"FLOAT"}
    if flavours.load().has("resize_of_bfloat16"):
        assert types_into(lowered(flavours.load(), resize, image), "RESIZE") == {"BF16"}


@pytest.mark.parametrize(
    ("outputs", "inputs", "kind"), [(6, 2, "FLOAT"), (8, 4, "HALF"), (2, 1, "HALF"), (4, 1, "FLOAT")]
)
def test_grouped_convolutions_of_halves(outputs: int, inputs: int, kind: str, lacking: flavours.Flavour) -> None:
    convolve = partial(F.conv2d, stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2)
    image = normal(2, 2 * inputs, 9, 8).half()
    weights = normal(outputs, inputs, 3, 3).half(), normal(outputs).half()
    assert types_into(lowered(lacking, convolve, image, weights=weights), "CONVOLUTION") == {kind}
    if flavours.load().has("odd_groups_of_halves"):
        assert types_into(lowered(flavours.load(), convolve, image, weights=weights), "CONVOLUTION") == {"HALF"}


@pytest.mark.parametrize(("count", "kind"), [(4, "HALF"), (5, "FLOAT"), (6, "FLOAT")])
def test_gathers_of_halves(count: int, kind: str) -> None:
    first = dataclasses.replace(flavours.load(), name=flavours.TENSORRT, version=(10, 6))
    inputs = normal(2, 5).half(), torch.arange(count) % 5
    lacking = dataclasses.replace(first, name=flavours.TENSORRT_RTX)
    assert types_into(lowered(lacking, lambda x, i: x[:, i], *inputs), "GATHER") == {kind}
    assert types_into(lowered(first, lambda x, i: x[:, i], *inputs), "GATHER") == {"HALF"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_bytes_are_only_cast(dtype: torch.dtype) -> None:
    if dtype == torch.int8 and not flavours.load().has("int8_numbers"):
        pytest.skip("refused, see below")

    def moved(x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.flip(0).abs(), x.mT, torch.cat([x, table]), torch.where(x > 2, x, table), x[:, table[:, 0].long()]

    x, table = (torch.arange(6).reshape(2, 3).add(first).to(dtype) for first in (1, 0))
    net = lowered(flavours.load(), moved, x, table % 2)
    layers = [net.definition.get_layer(index) for index in range(net.definition.num_layers)]
    read = {
        layer.type.name for layer in layers if layer.get_input(0) and layer.get_input(0).dtype.name.endswith("INT8")
    }
    assert read == {"CAST"}


@pytest.mark.parametrize(
    ("function", "inputs", "refused"),
    [
        (lambda x: x + 2, (INT8,), ["input", "aten.add.Tensor"]),
        (lambda x, y: y * 2, (INT8, X), ["input"]),
        (lambda x: (x * 2).to(torch.int8), (X,), ["aten._to_copy.default"]),
        (lambda x: x * 2 + INT8, (X,), ["aten.add.Tensor"]),
    ],
    ids=["input", "unread-input", "output", "constant"],
)
def test_int8_is_refused(
    function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], refused: list[str], lacking: flavours.Flavour
) -> None:
    module = OpModule(OpCase("row", function, inputs)).eval()
    program = api.optimize(api.capture(module, inputs), Settings(precision=None))
    with pytest.raises(UnsupportedOpsError, match=r"TensorRT has no torch\.int8 .* pass torch\.int32") as caught:
        lower(program, lacking)
    assert [node.op for node in caught.value.nodes] == refused
    if flavours.load().has("int8_numbers"):
        lower(program, flavours.load())


def test_grid_samples_where_the_layer_is_right(lacking: flavours.Flavour) -> None:
    sample = partial(F.grid_sample, mode="bicubic", padding_mode="reflection", align_corners=False)
    inputs = normal(2, 3, 5, 6), normal(2, 4, 3, 2)
    first = dataclasses.replace(flavours.load(), name=flavours.TENSORRT, version=(10, 6))
    assert types_into(lowered(first, sample, *inputs), "GRID_SAMPLE") == {"FLOAT"}
    assert not types_into(lowered(lacking, sample, *inputs), "GRID_SAMPLE")
