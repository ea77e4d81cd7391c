"""Layers that move elements or tell of shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.bare_network import BareNetwork, first, trt
from tests.layers.row import Row, add, const, in_tensorrt_10, normal

X = normal(2, 3, 3, 3)
SMALL = normal(1, 1, 3, 4)
MODES = {name: getattr(trt.SampleMode, name) for name in ("STRICT_BOUNDS", "FILL", "CLAMP", "WRAP", "REFLECT")}


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def with_inputs(method: str, *arguments: Any, inputs: dict[int, Tensor], **attributes: Any) -> Callable[..., Any]:
    """Like `add`, with further inputs of the layer from constants."""

    def build(net: BareNetwork, x: Any) -> Any:
        layer = getattr(net.definition, f"add_{method}")(x, *arguments)
        for name, value in attributes.items():
            setattr(layer, name, value)
        for i, value in inputs.items():
            layer.set_input(i, net.constant(value))
        return first(layer)

    return build


PADDING = in_tensorrt_10("its builder fails on a network of this deprecated layer alone; converters take slices")
SHUFFLES = [
    Row("shuffle-nothing", add("shuffle"), (X,), lambda x: x),
    Row("shuffle-transpose", add("shuffle", first_transpose=(0, 2, 3, 1)), (X,), lambda x: x.permute(0, 2, 3, 1)),
    Row(
        "shuffle-all",
        add("shuffle", first_transpose=(1, 0, 2, 3), reshape_dims=(0, -1, 9), second_transpose=(2, 0, 1)),
        (X,),
        lambda x: x.transpose(0, 1).reshape(3, 2, 9).permute(2, 0, 1),
    ),
    Row("shuffle-to-scalar", add("shuffle", reshape_dims=()), (normal(1, 1),), lambda x: x.reshape(())),
    Row(
        "shuffle-shape-input",
        with_inputs("shuffle", inputs={1: ints(0, -1)}, second_transpose=(1, 0)),
        (X,),
        lambda x: x.reshape(2, 27).T,
    ),
    Row(
        "squeeze",
        lambda net, x: first(net.definition.add_squeeze(x, net.ints(0, -1))),
        (normal(1, 3, 1, 1),),
        lambda x: x.reshape(3, 1),
        needs="squeeze",
    ),
    Row(
        "unsqueeze",
        lambda net, x: first(net.definition.add_unsqueeze(x, net.ints(0, -1))),
        (normal(3, 4),),
        lambda x: x.reshape(1, 3, 4, 1),
        needs="squeeze",
    ),
    Row(
        "concatenation",
        lambda net, *xs: _concatenate(net, xs, 1),
        (normal(2, 3, 4), normal(2, 1, 4), normal(2, 2, 4)),
        lambda *xs: torch.cat(xs, 1),
    ),
    Row(
        "padding",
        add("padding_nd", (1, 0), (0, 2)),
        (X,),
        lambda x: torch.nn.functional.pad(x, (0, 2, 1, 0)),
        refused=PADDING,
    ),
    Row("padding-crops", add("padding_nd", (-1, 0), (0, -2)), (X,), lambda x: x[:, :, 1:, :-2], refused=PADDING),
    Row("shape", add("shape"), (X,), lambda x: torch.tensor([2, 3, 3, 3])),
]


def _concatenate(net: BareNetwork, tensors: Sequence[Any], axis: int) -> Any:
    layer = net.definition.add_concatenation(list(tensors))
    layer.axis = axis
    return first(layer)


def cut(start: Sequence[int], size: Sequence[int], stride: Sequence[int], mode: str, **options: Any) -> Any:
    return with_inputs(
        "slice", tuple(start), tuple(size), tuple(stride), inputs=options.pop("inputs", {}), mode=MODES[mode], **options
    )


def numpy_pad(mode: str, **options: Any) -> Callable[[Tensor], Tensor]:
    """2 before and 3 behind in the last dimension, 1 before in the one in front of it."""
    return lambda x: torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (1, 0), (2, 3)), mode, **options))


AROUND = (0, 0, -1, -2), (1, 1, 4, 9), (1, 1, 1, 1)
WITHIN = (0, 1, 0, 0), (2, 2, 2, 2), (1, 1, 2, 2)
SLICES = [
    Row("slice", cut(*WITHIN, "STRICT_BOUNDS"), (X,), lambda x: x[:, 1:3, ::2, ::2]),
    Row(
        "slice-backwards",
        cut((1, 2, 2, 2), (2, 2, 3, 2), (-1, -2, -1, -2), "STRICT_BOUNDS"),
        (X,),
        lambda x: x.flip(0, 1, 2, 3)[:, ::2, :, ::2],
    ),
    Row(
        "slice-expand",
        cut((0, 0, 0, 1), (2, 3, 2, 4), (1, 1, 1, 0), "STRICT_BOUNDS"),
        (X,),
        lambda x: x[..., :2, 1:2].expand(2, 3, 2, 4),
    ),
    Row(
        "slice-empty",
        cut((0, 0, 0, 0), (2, 0, 3, 3), (1, 1, 1, 1), "STRICT_BOUNDS"),
        (X,),
        lambda x: x[:, :0],
    ),
    Row(
        "slice-FILL-empty",
        cut((0, -2, 0, 0), (2, 0, 3, 3), (1, 1, 1, 1), "FILL"),
        (X,),
        lambda x: x[:, :0],
    ),
    *(
        Row(f"slice-{mode}", cut(*AROUND, mode), (SMALL,), numpy_pad(numpy_mode))
        for mode, numpy_mode in {"FILL": "constant", "CLAMP": "edge", "WRAP": "wrap", "REFLECT": "reflect"}.items()
    ),
    Row(
        "slice-FILL-value",
        cut(*AROUND, "FILL", inputs={4: torch.tensor(2.5)}),
        (SMALL,),
        numpy_pad("constant", constant_values=2.5),
    ),
    Row(
        "slice-REFLECT-far",
        cut((-9,), (25,), (1,), "REFLECT"),
        (normal(4),),
        lambda x: torch.from_numpy(np.pad(x.numpy(), (9, 12), "reflect")),
    ),
    Row("slice-WRAP-backwards", cut((5,), (4,), (-3,), "WRAP"), (normal(4),), lambda x: x[[1, 2, 3, 0]]),
    Row(
        "slice-inputs",
        cut(
            *[(0, 0, 0, 0)] * 2,
            (1, 1, 1, 1),
            "STRICT_BOUNDS",
            inputs={i: ints(*v) for i, v in enumerate(WITHIN, start=1)},
        ),
        (X,),
        lambda x: x[:, 1:3, ::2, ::2],
    ),
    Row("slice-axes", cut((1, 1), (2, 2), (1, 1), "STRICT_BOUNDS", axes=(1, -1)), (X,), lambda x: x[:, 1:3, :, 1:]),
    Row(
        "slice-bool",
        cut((-1,), (6,), (1,), "FILL"),
        (torch.tensor([True, True, False]),),
        lambda x: torch.tensor([False, True, True, False, False, False]),
    ),
]

INT, LINSPACE = torch.int32, trt.FillOperation.LINSPACE


def fill(dtype: Any, shape: tuple[int, ...], inputs: dict[int, Tensor], **attributes: Any) -> Callable[..., Any]:
    def build(net: BareNetwork) -> Any:
        layer = net.definition.add_fill(shape, LINSPACE, dtype)
        for name, value in attributes.items():
            setattr(layer, name, value)
        for i, value in inputs.items():
            layer.set_input(i, net.constant(value))
        return first(layer)

    return build


DELTAS = {1: torch.tensor(1, dtype=INT), 2: ints(100, 10)}
MADE = [
    Row("constant", lambda net: net.constant([[1, 2, 3]], torch.int64), (), lambda: torch.tensor([[1, 2, 3]])),
    Row("constant-scalar", const(2.5), (), lambda: torch.tensor(2.5)),
    Row("constant-bool", const([True, False]), (), lambda: torch.tensor([True, False])),
    Row("fill", fill(trt.float32, (4,), {}, alpha=2.5, beta=-0.5), (), lambda: torch.tensor([2.5, 2.0, 1.5, 1.0])),
    Row("fill-int64", fill(trt.int64, (3,), {}, alpha=2**40, beta=3), (), lambda: torch.tensor([0, 3, 6]) + 2**40),
    Row(
        "fill-inputs",
        fill(trt.int32, (3, 4), DELTAS),
        (),
        lambda: torch.tensor([[1, 11, 21, 31], [101, 111, 121, 131], [201, 211, 221, 231]]),
    ),
    Row(
        "fill-shape-input",
        fill(trt.int32, (1, 1), {**DELTAS, 0: ints(2, 2)}),
        (),
        lambda: torch.tensor([[1, 11], [101, 111]]),
    ),
]

ROWS = [*SHUFFLES, *SLICES, *MADE]
