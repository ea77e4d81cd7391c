"""Reads and writes by strides as slices, windows, permutations or look-ups, where the strided tensor is contiguous."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

aten = torch.ops.aten

_MOST_PLACES = 2**17  # 1 MB of them


def unify_strides(program: Program, settings: Settings) -> None:
    """Replace ``aten.as_strided`` and, where it writes along one dimension, ``aten.as_strided_scatter``.

    Of static sizes only; what does not read in nested steps stays where it reads many elements.
    """
    for node in program.calls:
        if node.target not in (aten.as_strided.default, aten.as_strided_scatter.default):
            continue
        steps = _steps(node)
        if steps is None:
            continue
        with program.graph.graph.inserting_before(node):
            replacement = (_read if node.target is aten.as_strided.default else _write)(node, steps)
        if replacement is not None:
            node.replace_all_uses_with(replacement)
            program.graph.graph.erase_node(node)


@dataclass(frozen=True)
class _Step:
    """One dimension of the result: how many steps of what width it takes through the memory."""

    stride: int
    size: int
    axis: int


@dataclass(frozen=True)
class _Steps:
    """What a call reads or writes.

    Attributes:
        start: the first element, counted in the strided tensor.
        moving: the dimensions that move, from the widest step to the narrowest.
    """

    start: int
    moving: tuple[_Step, ...]

    def reach(self, first: int = 0) -> int:
        """The number of elements from the first to the last one that the steps from one of them on come to."""
        return sum((step.size - 1) * step.stride for step in self.moving[first:]) + 1


def _steps(node: fx.Node) -> _Steps | None:
    """The steps of a call, None where they are not known or leave the strided tensor."""
    bound = bind(node)
    value, sizes, strides = bound["input"].meta["val"], bound["size"], bound["stride"]
    numbers = [*value.shape, *sizes, *strides, bound["storage_offset"] or 0, value.storage_offset()]
    if not all(type(number) is int for number in numbers) or 0 in (*value.shape, *sizes) or not value.is_contiguous():
        return None
    start = bound["storage_offset"] or 0
    if bound["storage_offset"] is not None and value.storage_offset():
        return None  # it counts from where the memory begins, which may be elsewhere for the next input
    moving = [
        _Step(stride, size, axis)
        for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True))
        if size != 1 and stride != 0
    ]
    steps = _Steps(start, tuple(sorted(moving, key=lambda step: -step.stride)))
    return steps if start + steps.reach() <= value.numel() else None


def _read(node: fx.Node, steps: _Steps) -> fx.Node | None:
    plan = _plan(steps)
    if plan is None:
        return _look_up(node, steps)
    graph, bound = node.graph, bind(node)

    def then(target: Any, source: fx.Node, *args: Any) -> fx.Node:
        return call(graph, target, source, *args, like=node)

    width = bound["input"].meta["val"].numel() - steps.start
    result = then(aten.reshape.default, bound["input"], [-1])
    result = then(aten.slice.Tensor, result, 0, steps.start)
    shape: list[int] = []
    for stride, size, window, hop in plan:
        # One row of `stride` elements for each step; what is added behind the last one is never read.
        rows = size if window is None else (size - 1) * hop + window
        if rows * stride > width:
            result = then(aten.constant_pad_nd.default, result, [0, rows * stride - width])
        result = then(aten.slice.Tensor, result, len(shape), 0, rows * stride)
        result = then(aten.reshape.default, result, [*shape, rows, stride])
        if window is not None:
            result = then(aten.unfold.default, result, len(shape), window, hop)
            result = then(aten.transpose.int, result, -1, -2)
            shape.append(size)
        shape.append(rows if window is None else window)
        width = stride
    result = then(aten.select.int, result, len(shape), 0)
    axes = [step.axis for step in steps.moving]
    result = then(aten.permute.default, result, sorted(range(len(axes)), key=axes.__getitem__))
    alone = [size if axis in axes else 1 for axis, size in enumerate(bound["size"])]
    return then(aten.expand.default, then(aten.reshape.default, result, alone), list(bound["size"]))


def _look_up(node: fx.Node, steps: _Steps) -> fx.Node | None:
    """Every element by its place, where they are few enough for the places to be a constant."""
    graph, bound, value = node.graph, bind(node), node.meta["val"]
    if value.numel() > _MOST_PLACES:
        return None
    place = call(graph, aten.full.default, [], steps.start, dtype=torch.int64, device=value.device, like=node)
    for step in steps.moving:
        end = step.size * step.stride
        hops = call(
            graph, aten.arange.start_step, 0, end, step.stride, dtype=torch.int64, device=value.device, like=node
        )
        shape = [-1] + [1] * (value.dim() - 1 - step.axis)
        place = call(
            graph, aten.add.Tensor, place, call(graph, aten.reshape.default, hops, shape, like=node), like=node
        )
    flat = call(graph, aten.reshape.default, bound["input"], [-1], like=node)
    found = call(graph, aten.index.Tensor, flat, [place], like=node)
    return call(graph, aten.expand.default, found, list(bound["size"]), like=node)


def _plan(steps: _Steps) -> Sequence[tuple[int, int, int | None, int]] | None:
    """How rows are cut into rows, from the outermost on; None where that is not what the steps do.

    Each entry has the width of the new rows and how many there are; where a step is narrower than what the next one
    spans, both are one entry with the next one's size, the window, and the hop from one to the next in new rows.
    """
    plan: list[tuple[int, int, int | None, int]] = []
    width, index = steps.start + steps.reach(), 0
    while index < len(steps.moving):
        step = steps.moving[index]
        if index and steps.reach(index) > width:
            return None
        if steps.reach(index + 1) <= step.stride:
            plan.append((step.stride, step.size, None, 0))
            index += 1
        else:
            inner = steps.moving[index + 1]
            if step.stride % inner.stride or steps.reach(index + 2) > inner.stride:
                return None
            plan.append((inner.stride, step.size, inner.size, step.stride // inner.stride))
            index += 2
        width = plan[-1][0]
    return plan


def _write(node: fx.Node, steps: _Steps) -> fx.Node | None:
    if len(steps.moving) > 1:
        return None
    graph, bound = node.graph, bind(node)
    base = bound["input"]
    stride = steps.moving[0].stride if steps.moving else 1
    flat = call(graph, aten.reshape.default, base, [-1], like=node)
    values = call(graph, aten.reshape.default, bound["src"], [-1], like=node)
    end = steps.start + steps.reach()
    written = call(graph, aten.slice_scatter.default, flat, values, 0, steps.start, end, stride, like=node)
    return call(graph, aten.reshape.default, written, list(base.meta["val"].shape), like=node)
