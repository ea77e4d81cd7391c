"""Heads of attention, and the tensors that they are projected into."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.passes.merge_sibling_linears import join_linears
from torch2trt.passes.pieces import Piece, piece_of
from torch2trt.passes.views import PERMUTING, RESHAPING, View, applied, order_of
from torch2trt.sizes import Size, volume

aten = torch.ops.aten

HEADS_AND_TOKENS = (0, 2, 1, 3)
"""The order that makes [N, heads, tokens, width] of [N, tokens, heads, width], and the other way round."""


def with_heads_behind(program: Program, node: fx.Node) -> fx.Node | None:
    """The tensor [N, tokens, heads, width] of which a node is the transpose."""
    return node.all_input_nodes[0] if order_of(program, node) == HEADS_AND_TOKENS else None


def source_of(program: Program, node: fx.Node, order: Sequence[int] = HEADS_AND_TOKENS) -> fx.Node | None:
    """The tensor [..., channels] that a node shows the heads of, in whatever steps; None where it is none.

    Args:
        node: [N, tokens, heads, width] with its dimensions in another order.
        order: that order.
    """
    steps, source = [], node
    while source.target in PERMUTING | RESHAPING and IN_TORCH not in source.meta:
        steps.append(source)
        source = source.all_input_nodes[0]
    shape = program.spec(source).shape
    view: View | None = View.of(shape)
    for step in reversed(steps):
        view = None if view is None else applied(program, step, view)
    if view is None:
        return None
    behind = view.permute([order.index(axis) for axis in range(len(order))])
    _, moved, _ = behind.steps()
    return source if moved is None and shape[-1:] == (volume(behind.shape[2:]),) else None


def unscaled(node: fx.Node | None) -> tuple[fx.Node | None, float]:
    """A tensor, and the number that makes of it what a node is; the node itself, and 1, where it is no such product."""
    if node is None or node.target is not aten.mul.Tensor or IN_TORCH in node.meta:
        return node, 1.0
    bound = bind(node)
    return (bound["input"], float(bound["other"])) if isinstance(bound["other"], (int, float)) else (node, 1.0)


def pieces_of_one(program: Program, sources: Sequence[fx.Node | None]) -> list[Piece] | None:
    """Queries, keys and values as pieces of one tensor; None where they are not.

    Three projections of one tensor are made one for it.
    """
    parts = [source for source in sources if source is not None]
    if len(parts) != 3:
        return None
    pieces = [piece_of(program, part) for part in parts]
    if pieces == [None, None, None]:
        pieces = [piece_of(program, part) for part in join_linears(program, parts)]
    found = [piece for piece in pieces if piece is not None]
    return None if len(found) != 3 or len({piece.source for piece in found}) > 1 else found


def packed_in(program: Program, sources: Sequence[fx.Node | None], tokens: Size) -> tuple[fx.Node, list[int]] | None:
    """The tensor [N, tokens, channels] with queries, keys and values side by side, and where each begins.

    Three projections of one tensor are made one for it.
    """
    found = pieces_of_one(program, sources)
    if found is None:
        return None
    packed = found[0].source
    shape = program.spec(packed).shape
    if any((piece.dim, piece.step) != (len(shape) - 1, 1) for piece in found):
        return None
    if shape[1:-1] != (tokens,):
        if not isinstance(tokens, int):
            return None
        with packed.graph.inserting_after(packed):
            packed = call(packed.graph, aten.reshape.default, packed, [-1, tokens, shape[-1]], like=packed)
    return packed, [piece.start for piece in found]


def replace_heads(program: Program, node: fx.Node, made: fx.Node) -> None:
    """Put a tensor [N, tokens, heads, width] in the place of its transpose."""
    graph = program.graph.graph
    with graph.inserting_before(node):
        if program.spec(made).shape[2] == 1:
            result = call(graph, aten.squeeze.dim, made, 2, like=node)
            result = call(graph, aten.unsqueeze.default, result, 1, like=node)
        else:
            result = call(graph, aten.permute.default, made, list(HEADS_AND_TOKENS), like=node)
    for user in list(node.users):
        if order_of(program, user) == HEADS_AND_TOKENS:
            user.replace_all_uses_with(made)
    node.replace_all_uses_with(result)
