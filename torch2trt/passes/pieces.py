"""Slices, splits and the items of them as what they are: runs of a tensor along one dimension."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind

aten = torch.ops.aten

SPLITTING = frozenset({aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default})
"""The operators whose results are runs of a tensor, one after the other."""


@dataclass(frozen=True)
class Piece:
    """Elements of a tensor along one dimension, from ``start`` on, ``length`` of them, each ``step`` after the last."""

    source: fx.Node
    dim: int
    start: int
    length: int
    step: int = 1

    @property
    def end(self) -> int:
        """The place after the last element."""
        return self.start + (self.length - 1) * self.step + 1

    def of(self, outer: Piece) -> Piece:
        """This piece of a piece, taken from what that was taken from."""
        step = self.step * outer.step
        return Piece(outer.source, self.dim, outer.start + self.start * outer.step, self.length, step)

    def emit(self, *, like: fx.Node) -> fx.Node:
        """Insert the slice at the graph's insertion point."""
        step = () if self.step == 1 else (self.step,)
        return call(like.graph, aten.slice.Tensor, self.source, self.dim, self.start, self.end, *step, like=like)


def piece_of(program: Program, node: fx.Node) -> Piece | None:
    """The node as a piece of its argument, where the sizes along that dimension are known, unless it runs in torch."""
    if _runs_in_torch(node):
        return None
    if node.target is aten.slice.Tensor:
        bound = bind(node)
        source, step = bound["input"], bound["step"]
        shape = program.spec(source).shape
        dim = bound["dim"] % len(shape)
        size, length = shape[dim], program.spec(node).shape[dim]
        ends = bound["start"], bound["end"]
        known = isinstance(size, int) and isinstance(length, int) and isinstance(step, int)
        if not known or not length or not all(end is None or isinstance(end, int) for end in ends):
            return None
        start, _, _ = slice(*ends, step).indices(size)
        return Piece(source, dim, start, length, step)
    if node.target is not operator.getitem:
        return None
    parts, index = node.args
    if not isinstance(parts, fx.Node) or parts.target not in SPLITTING or not isinstance(index, int):
        return None
    bound = bind(parts)
    dim = bound["dim"] % program.spec(bound["input"]).rank
    sizes = [part.shape[dim] for part in program.result(parts)]  # type: ignore[union-attr]
    if not all(isinstance(size, int) for size in sizes) or not sizes[index]:
        return None
    return Piece(bound["input"], dim, sum(sizes[: index % len(sizes)]), sizes[index])


def selection_of(program: Program, node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """The tensor, dimension and index of a selection or of an item of ``unbind``, where the index has a known place.

    None, too, where it runs in torch.
    """
    if _runs_in_torch(node):
        return None
    if node.target is aten.select.int:
        bound = bind(node)
        source, index = bound["input"], bound["index"]
    elif node.target is operator.getitem:
        parts, index = node.args
        if not isinstance(parts, fx.Node) or parts.target is not aten.unbind.int:
            return None
        bound = bind(parts)
        source = bound["input"]
    else:
        return None
    shape = program.spec(source).shape
    dim = bound["dim"] % len(shape)
    size = shape[dim]
    return (source, dim, index % size) if isinstance(size, int) and isinstance(index, int) else None


def _runs_in_torch(node: fx.Node) -> bool:
    """Whether a call is to run in torch, or the one whose item it is."""
    makers = [node, *node.all_input_nodes] if node.target is operator.getitem else [node]
    return any(IN_TORCH in maker.meta for maker in makers)
