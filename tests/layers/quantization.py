"""Quantize and dequantize: one scale, one a channel, one a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.bare_network import DTYPES, BareNetwork, first, trt
from tests.layers.row import Row, normal

# Ties, values out of range, and numbers that every type of floating point holds.
X = torch.tensor([[0.25, 0.75, -0.25, -0.75, 1.25], [100.0, -100.0, 63.5, -64.0, 0.0]])
CHANNELS = torch.tensor([0.5, 2.0])
ONLY_WEIGHTS = "TensorRT quantizes the channels of weights, not of activations: 10.6 makes zeros of them in FP16"


def quantize(kind: str, scale: Any, axis: int | None = None) -> Callable[..., Any]:
    """Quantize and dequantize: what lies between cannot leave a network in every type."""

    def build(net: BareNetwork, x: Any) -> Any:
        step = net.constant(scale)
        down = net.definition.add_quantize(x, step, getattr(trt, kind))
        if axis is not None:
            # At once: TensorRT 10 finds the shape when the output is read, and keeps it.
            down.axis = axis
        up = net.definition.add_dequantize(first(down), step, DTYPES[net.dtype])
        if axis is not None:
            up.axis = axis
        return first(up)

    return build


def fake(scale: Tensor | float) -> Callable[[Tensor], Tensor]:
    # numpy rounds half to even as well
    return lambda x: torch.from_numpy((x / scale).numpy().round().clip(-128, 127)) * scale


def eight_bit_floats(x: Tensor) -> Tensor:
    """Rounds to three bits of mantissa, with exponents down to -6 and values up to 448."""
    exponent = torch.floor(torch.log2(x.abs().clamp(min=2.0**-6)))
    step = 2.0 ** (exponent - 3)
    return torch.from_numpy((x / step).numpy().round()).mul(step).clamp(-448, 448)


def quantized(kind: str, scale: float) -> Callable[..., Any]:
    return lambda net, x: first(net.definition.add_quantize(x, net.constant(scale), getattr(trt, kind)))


def dequantized(net: BareNetwork, x: Any) -> Any:
    return first(net.definition.add_dequantize(x, net.constant(0.25), DTYPES[net.dtype]))


ROWS = [
    Row("quantize-int8", quantized("int8", 0.5), (X,), lambda x: (fake(0.5)(x) / 0.5).to(torch.int8)),
    Row("dequantize-int8", dequantized, (torch.tensor([-128, 0, 127], dtype=torch.int8),), lambda x: x.double() / 4),
    Row("quantize-dequantize-int8", quantize("int8", 0.5), (X,), fake(0.5)),
    Row(
        "quantize-dequantize-int8-channels",
        quantize("int8", CHANNELS, 0),
        (X,),
        fake(CHANNELS[:, None].double()),
        engine=ONLY_WEIGHTS,
    ),
    Row(
        "quantize-dequantize-int8-last-axis",
        quantize("int8", CHANNELS, -1),
        (X[:, :2],),
        fake(CHANNELS.double()),
        engine=ONLY_WEIGHTS,
    ),
    Row(
        "quantize-dequantize-fp8",
        quantize("fp8", 0.25),
        (torch.cat([normal(64), torch.tensor([448.0, -1000.0, 2.0**-9, 0.0])]),),
        lambda x: eight_bit_floats(x / 0.25) * 0.25,
    ),
]
