"""Layers that pick or place elements by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bare_network import BareNetwork, first, trt
from tests.layers.row import FLOATS, Row, add, const, integers, normal

X = normal(2, 3, 4, 2)


def ints(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def gather(mode: str, **attributes: Any) -> Callable[..., Any]:
    return add("gather_v2", getattr(trt.GatherMode, mode), **attributes)


def take_batches(x: Tensor, indices: Tensor) -> Tensor:
    return torch.stack([part[:, row] for part, row in zip(x, indices.long(), strict=True)])


PLACES = torch.tensor([[[0, 1], [2, 3]], [[1, 0], [0, 2]]], dtype=torch.int32)
GATHERS = [
    Row("gather", add("gather", 2), (X, ints([[3, 0], [1, 1]])), lambda x, i: x[:, :, i.long()]),
    Row("gather-scalar", add("gather", 1), (X, ints(2)), lambda x, i: x[:, 2]),
    Row("gather-negative", add("gather", 1), (X, ints([-1, 0])), lambda x, i: x[:, [2, 0]]),
    Row(
        "gather-outside",
        add("gather", 1),
        (X, ints([1, 3])),
        lambda x, i: x[:, [1, 1]] * torch.tensor([1, 0])[:, None, None],
    ),
    Row("gather-bool", add("gather", 0), (torch.tensor([True, False]), ints([1, 0, 0])), lambda x, i: x[i.long()]),
    Row(
        "gather-elementwise",
        gather("DEFAULT", axis=2, num_elementwise_dims=1),
        (X, ints([[3, 0, 1], [1, 2, 2]])),
        take_batches,
    ),
    Row(
        "gather-element",
        gather("ELEMENT", axis=1),
        (normal(2, 3), ints([[2, 0], [-1, 1]])),
        lambda x, i: x.gather(1, i.long() % 3),
    ),
    Row("gather-nd", gather("ND"), (X, PLACES[:, :, :1] % 2), lambda x, i: x[i[..., 0].long()]),
    Row("gather-nd-pairs", gather("ND"), (normal(3, 4, 2), PLACES), lambda x, i: x[i[..., 0].long(), i[..., 1].long()]),
    Row(
        "gather-nd-elementwise",
        gather("ND", num_elementwise_dims=1),
        (normal(2, 3, 4), PLACES),
        lambda x, i: torch.stack([x[b][i[b, :, 0].long(), i[b, :, 1].long()] for b in range(2)]),
    ),
]


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    y = x.clone()
    for row, update in zip(indices.tolist(), updates, strict=True):
        y[tuple(row)] = update
    return y


def topk(op: str, k: int) -> Callable[..., Any]:
    def build(net: BareNetwork, x: Any) -> Any:
        layer = net.definition.add_topk(x, getattr(trt.TopKOperation, op), k, 1 << 1)
        return [layer.get_output(0), layer.get_output(1)]

    return build


def topk_with_input(net: BareNetwork, x: Any) -> Any:
    layer = net.definition.add_topk(x, trt.TopKOperation.MAX, 1, 1 << 1)
    layer.set_input(1, net.int(2))
    return first(layer)


def reverse_sequence(x: Tensor, lengths: Tensor) -> Tensor:
    y = x.clone()
    for b, n in enumerate(lengths.tolist()):
        y[:n, b] = x[:n, b].flip(0)
    return y


def one_hot(axis: int) -> Callable[..., Any]:
    return add("one_hot", const([-1.0, 2.0]), const(ints(4)), axis)


# Three boxes of which the first two overlap by 0.6, in two classes, the second with other scores.
BOXES = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.25, 0.0], [4.0, 4.0, 5.0, 5.0]]])
SCORES = torch.tensor([[[0.5, 0.75], [0.875, 0.125], [0.25, 0.375]]])


def nms(**attributes: Any) -> Callable[..., Any]:
    def build(net: BareNetwork, boxes: Any, scores: Any) -> Any:
        layer = net.definition.add_nms(boxes, scores, net.int(2))
        layer.set_input(3, net.constant(0.5, torch.float32))
        layer.set_input(4, net.constant(0.25, torch.float32))
        for name, value in attributes.items():
            setattr(layer, name, value)
        return [layer.get_output(0), layer.get_output(1)]

    return build


# (batch, class, box) by falling score; box 0 of class 0 is suppressed, two boxes score too low.
SELECTED = torch.tensor([[0, 0, 1], [0, 1, 0], [0, 1, 2]])
CENTRES = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.625, 0.5, 0.75, 1.0], [4.5, 4.5, 1.0, 1.0]]])

BY_DATA = "the shape of its output depends on the data"

OTHERS = [
    Row(
        "scatter-element",
        add("scatter", trt.ScatterMode.ELEMENT, axis=1),
        (normal(2, 4), ints([[3, -4], [1, 2]]), normal(2, 2)),
        lambda x, i, u: x.scatter(1, i.long() % 4, u),
    ),
    Row(
        "scatter-nd",
        add("scatter", trt.ScatterMode.ND),
        (normal(3, 4, 2), ints([[2, 1], [0, 3]]), normal(2, 2)),
        scatter_nd,
    ),
    Row("topk-max", topk("MAX", 3), (normal(2, 6, 3),), lambda x: list(torch.topk(x, 3, 1))),
    Row("topk-min", topk("MIN", 2), (normal(2, 6, 3),), lambda x: list(torch.topk(x, 2, 1, largest=False))),
    Row(
        "topk-equal",
        topk("MAX", 2),
        (torch.tensor([[1.0, 2.0, 2.0, 2.0]]),),
        lambda x: [x[:, 1:3], ints([[1, 2]])],
        engine="which of equal values comes first is TensorRT's choice",
    ),
    Row("topk-k-input", topk_with_input, (normal(2, 6, 3),), lambda x: torch.topk(x, 2, 1).values),
    Row("one_hot", one_hot(-1), (ints([[0, 3], [1, 2]]),), lambda i: F.one_hot(i.long(), 4) * 3.0 - 1),
    Row("one_hot-first", one_hot(0), (ints([0, 3, 1]),), lambda i: F.one_hot(i.long(), 4).T * 3.0 - 1),
    Row("one_hot-outside", one_hot(1), (ints([4, 1]),), lambda i: torch.tensor([[-1.0] * 4, [-1.0, 2.0, -1.0, -1.0]])),
    Row(
        "non_zero",
        add("non_zero"),
        (integers(3, 4, low=-1, high=2).float(),),
        lambda x: torch.as_tensor(np.stack(np.nonzero(x.numpy()))),
        engine=BY_DATA,
    ),
    Row(
        "non_zero-bool",
        add("non_zero"),
        (torch.tensor([[False, True], [True, False]]),),
        lambda x: ints([[0, 1], [1, 0]]),
        engine=BY_DATA,
    ),
    Row("reverse_sequence", add("reverse_sequence"), (normal(5, 3, 2), ints([5, 1, 3])), reverse_sequence),
    Row(
        "reverse_sequence-axes",
        add("reverse_sequence", batch_axis=0, sequence_axis=2),
        (normal(3, 2, 5), ints([5, 1, 3])),
        lambda x, n: reverse_sequence(x.permute(2, 0, 1), n).permute(1, 2, 0),
    ),
    Row("nms", nms(), (BOXES, SCORES), lambda b, s: [SELECTED, torch.tensor(3)], floats=FLOATS[:2], engine=BY_DATA),
    Row(
        "nms-topk",
        nms(topk_box_limit=2),
        (BOXES, SCORES),
        lambda b, s: [SELECTED[:2], torch.tensor(2)],
        floats=FLOATS[:2],
        engine=BY_DATA,
    ),
    Row(
        "nms-centres",
        nms(bounding_box_format=trt.BoundingBoxFormat.CENTER_SIZES),
        (CENTRES, SCORES),
        lambda b, s: [SELECTED, torch.tensor(3)],
        floats=FLOATS[:2],
        engine=BY_DATA,
    ),
]

ROWS = [*GATHERS, *OTHERS]
