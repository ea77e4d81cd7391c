"""Reads and writes by strides as slices, windows, permutations and gathers: memory has no layout in an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch2trt.errors import UnsupportedNode, UnsupportedOpsError
from torch2trt.graph.program import Program, provenance
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind, name_of
from torch2trt.settings import Settings

aten = torch.ops.aten


def unify_strides(program: Program, settings: Settings) -> None:
    """Replace ``aten.as_strided`` and ``aten.as_strided_scatter``.

    Raises:
        UnsupportedOpsError: what is in the memory that a call reads is not known. Torch cannot run such a call between
            engines either, since they hand over tensors in a layout of their own.
    """
    refused: list[UnsupportedNode] = []
    for node in program.calls:
        if node.target not in (aten.as_strided.default, aten.as_strided_scatter.default):
            continue
        if 0 in bind(node)["size"]:
            continue  # there is no memory to it
        found = _steps(node)
        if isinstance(found, str):
            refused.append(UnsupportedNode(node.name, name_of(node.target), found, *reversed(provenance(node))))
            continue
        with program.graph.graph.inserting_before(node):
            node.replace_all_uses_with(_replacement(node, *found))
        program.graph.graph.erase_node(node)
    if refused:
        raise UnsupportedOpsError(refused, hint="index or slice the tensor instead")


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
        start: the first element, counted in the memory.
        shape: of the result.
        moving: the dimensions that move, from the widest step to the narrowest.
    """

    start: int
    shape: tuple[int, ...]
    moving: tuple[_Step, ...]

    @classmethod
    def of(cls, start: int, shape: Sequence[int], strides: Sequence[int]) -> _Steps:
        """The steps of a tensor's geometry."""
        moving = [
            _Step(stride, size, axis)
            for axis, (size, stride) in enumerate(zip(shape, strides, strict=True))
            if size != 1 and stride != 0
        ]
        return cls(start, tuple(shape), tuple(sorted(moving, key=lambda step: -step.stride)))

    @property
    def overlap(self) -> bool:
        """Whether the steps may come to an element more than once."""
        still = len(self.shape) - self.shape.count(1) > len(self.moving)
        return still or any(self.reach(number + 1) > step.stride for number, step in enumerate(self.moving))

    def reach(self, first: int = 0) -> int:
        """The number of elements from the first to the last one that the steps from one of them on come to."""
        return sum((step.size - 1) * step.stride for step in self.moving[first:]) + 1


def _steps(node: fx.Node) -> tuple[fx.Node, _Steps] | str:
    """The tensor whose memory a call reads or writes, and its steps there; or why they are not known."""
    bound = bind(node)
    owner = _owner(bound["input"])
    value, memory, offset = bound["input"].meta["val"], owner.meta["val"], bound["storage_offset"]
    numbers = [*value.shape, *memory.shape, *bound["size"], *bound["stride"], offset or 0, value.storage_offset()]
    if not all(type(number) is int for number in numbers):
        return "strides through a tensor of dynamic sizes"
    if offset is not None and memory.storage_offset():
        return "strides from where the memory of an input begins, which may be elsewhere for the next one"
    start = (value.storage_offset() if offset is None else offset) - memory.storage_offset()
    steps = _Steps.of(start, bound["size"], bound["stride"])
    if not memory.permute(_order(memory)).is_contiguous() or start < 0 or start + steps.reach() > memory.numel():
        return "strides through memory that the tensor does not fill"
    if node.target is aten.as_strided_scatter.default and steps.overlap:
        return "writes to the same memory more than once"
    return owner, steps


def _owner(node: fx.Node) -> fx.Node:
    """The tensor that a view is of, however many views lie between them."""
    while node.args and isinstance(source := node.args[0], fx.Node):
        value, before = node.meta["val"], source.meta["val"]
        if not isinstance(before, torch.Tensor) or before.dtype != value.dtype:
            break
        if before.untyped_storage()._cdata != value.untyped_storage()._cdata:
            break
        node = source
    return node


def _order(memory: torch.Tensor) -> list[int]:
    """The dimensions in the order of the memory."""
    strides = memory.stride()
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])


def _replacement(node: fx.Node, owner: fx.Node, steps: _Steps) -> fx.Node:
    memory = owner.meta["val"]
    flat = call(node.graph, aten.permute.default, owner, _order(memory), like=node)
    flat = call(node.graph, aten.reshape.default, flat, [-1], like=node)
    if node.target is aten.as_strided.default:
        return _read(node, flat, steps)
    bound = bind(node)
    value = bound["input"].meta["val"]
    seen = _Steps.of(value.storage_offset() - memory.storage_offset(), value.shape, value.stride())
    return _read(node, _write(node, flat, bound["src"], steps), seen)


def _read(node: fx.Node, flat: fx.Node, steps: _Steps) -> fx.Node:
    plan = _plan(steps)
    graph = node.graph

    def then(target: Any, source: fx.Node, *args: Any) -> fx.Node:
        return call(graph, target, source, *args, like=node)

    if plan is None:
        picked = then(aten.index_select.default, flat, 0, _places(node, steps))
        return then(aten.reshape.default, picked, list(steps.shape))
    width = flat.meta["val"].numel() - steps.start
    result = then(aten.slice.Tensor, flat, 0, steps.start)
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
    alone = [size if axis in axes else 1 for axis, size in enumerate(steps.shape)]
    return then(aten.expand.default, then(aten.reshape.default, result, alone), list(steps.shape))


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


def _write(node: fx.Node, flat: fx.Node, source: fx.Node, steps: _Steps) -> fx.Node:
    values = call(node.graph, aten.reshape.default, source, [-1], like=node)
    if len(steps.moving) > 1:
        return call(node.graph, aten.scatter.src, flat, 0, _places(node, steps), values, like=node)
    stride = steps.moving[0].stride if steps.moving else 1
    end = steps.start + steps.reach()
    return call(node.graph, aten.slice_scatter.default, flat, values, 0, steps.start, end, stride, like=node)


def _places(node: fx.Node, steps: _Steps) -> fx.Node:
    """Where in the memory each element of what is read or written is, in one dimension."""
    graph, device = node.graph, node.meta["val"].device
    first = [1] * len(steps.shape)
    places = call(graph, aten.full.default, first, steps.start, dtype=torch.int64, device=device, like=node)
    for step in steps.moving:
        alone = [size if axis == step.axis else 1 for axis, size in enumerate(steps.shape)]
        ramp = call(graph, aten.arange.default, step.size, dtype=torch.int64, device=device, like=node)
        ramp = call(graph, aten.mul.Tensor, ramp, step.stride, like=node)
        places = call(
            graph, aten.add.Tensor, places, call(graph, aten.reshape.default, ramp, alone, like=node), like=node
        )
    places = call(graph, aten.expand.default, places, list(steps.shape), like=node)
    return call(graph, aten.reshape.default, places, [-1], like=node)
