"""Rotary position embeddings that models write as slices, a concatenation and products, as one operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.ops import ROTARY
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused, only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.pieces import Piece, piece_of
from torch2trt.settings import Settings

aten = torch.ops.aten


def unify_rotary(program: Program, settings: Settings) -> None:
    """Replace ``x * cos + cat(-x[h:], x[:h]) * sin`` by one operator, and what joins its result with other channels.

    The sign goes into the sines, which all layers share, so nothing is negated for each of them; the numbers are the
    same to the bit.
    """
    graph = program.graph.graph
    signed: dict[fx.Node, fx.Node] = {}
    for node in program.calls:
        if IN_TORCH in node.meta:
            continue
        if (found := _found(program, node)) is not None:
            with graph.inserting_before(node):
                if found.sin not in signed:
                    signed[found.sin] = _signed(program, found.sin, like=node)
                turned = call(graph, ROTARY, found.source, found.cos, signed[found.sin], like=node)
            node.replace_all_uses_with(turned)
        elif (part := _turned_part(program, node)) is not None:
            whole, rotary = part
            with graph.inserting_before(node):
                turned = call(graph, ROTARY, whole, *rotary.args[1:], like=node)
            node.replace_all_uses_with(turned)
    erase_unused(graph)


@dataclass(frozen=True)
class _Rotary:
    source: fx.Node
    cos: fx.Node
    sin: fx.Node


def _found(program: Program, node: fx.Node) -> _Rotary | None:
    """The embedding whose sum a node is."""
    if node.target is not aten.add.Tensor or bind(node)["alpha"] != 1:
        return None
    terms = [bind(node)["input"], bind(node)["other"]]
    if not all(isinstance(term, fx.Node) and term.target is aten.mul.Tensor for term in terms):
        return None
    if any(only_user(term) is not node for term in terms):
        return None
    for straight, crossed in (terms, terms[::-1]):
        for swapped, sin in _orders(crossed):
            source = _source_of_swapped(program, swapped) if only_user(swapped) is crossed else None
            for own, cos in _orders(straight) if source is not None else ():
                if _whole(program, own) == source and _fits(program, node, own, cos, sin):
                    return _Rotary(own, cos, sin)
    return None


def _orders(product: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The factors of a product of tensors, in both orders."""
    first, second = bind(product)["input"], bind(product)["other"]
    if isinstance(first, fx.Node) and isinstance(second, fx.Node):
        yield first, second
        yield second, first


def _source_of_swapped(program: Program, node: fx.Node) -> Piece | None:
    """The piece of which a node is the second half, negated, before the first."""
    parts = _pair(program, node)
    if parts is None or parts[0].target is not aten.neg.default or only_user(parts[0]) is not node:
        return None
    second, first = (piece_of(program, part) for part in (bind(parts[0])["input"], parts[1]))
    if (
        first is None
        or second is None
        or (second.source, second.dim, second.length)
        != (
            first.source,
            first.dim,
            first.length,
        )
    ):
        return None
    last = program.spec(first.source).rank - 1
    if first.dim != last or first.step != 1 or second.step != 1 or second.start != first.end:
        return None
    return Piece(first.source, last, first.start, 2 * first.length)


def _pair(program: Program, node: fx.Node) -> list[fx.Node] | None:
    """The two tensors that a node joins along the last dimension."""
    if node.target is not aten.cat.default or IN_TORCH in node.meta:
        return None
    bound = bind(node)
    if len(bound["tensors"]) != 2 or bound["dim"] % program.spec(node).rank != program.spec(node).rank - 1:
        return None
    return list(bound["tensors"])


def _whole(program: Program, node: fx.Node) -> Piece | None:
    """A tensor as the piece that it is along its last dimension, if only of itself."""
    last = program.spec(node).rank - 1
    piece = piece_of(program, node)
    if piece is not None and piece.dim == last:
        return piece
    size = program.spec(node).shape[last] if last >= 0 else None
    return Piece(node, last, 0, size) if isinstance(size, int) else None


def _fits(program: Program, node: fx.Node, source: fx.Node, cos: fx.Node, sin: fx.Node) -> bool:
    """Whether cosines and sines have every channel, and neither they nor their dtype change what they turn."""
    own, *angles = (program.spec(each) for each in (source, cos, sin))
    if own != program.spec(node) or not own.dtype.is_floating_point:
        return False
    return all(
        each.dtype == own.dtype and 0 < each.rank <= own.rank and each.shape[-1] == own.shape[-1] for each in angles
    )


def _signed(program: Program, sin: fx.Node, *, like: fx.Node) -> fx.Node:
    graph, last = sin.graph, program.spec(sin).rank - 1
    size = program.spec(sin).shape[last]
    assert isinstance(size, int)
    first, second = (Piece(sin, last, start, size // 2).emit(like=like) for start in (0, size // 2))
    return call(graph, aten.cat.default, [call(graph, aten.neg.default, first, like=like), second], last, like=like)


def _turned_part(program: Program, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The tensor whose first channels are turned where a node joins them with the others, and the call that does."""
    parts = _pair(program, node)
    if parts is None or parts[0].target is not ROTARY or only_user(parts[0]) is not node:
        return None
    turned, rest = piece_of(program, bind(parts[0])["input"]), piece_of(program, parts[1])
    if turned is None or rest is None or turned.source is not rest.source:
        return None
    last = program.spec(node).rank - 1
    same = (turned.dim, turned.step, rest.dim, rest.step) == (last, 1, last, 1)
    if not same or turned.start != 0 or rest.start != turned.end or program.spec(turned.source) != program.spec(node):
        return None
    return turned.source, parts[0]
