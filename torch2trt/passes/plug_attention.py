"""Attention that engines leave to torch's kernels, as plugins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from torch2trt.graph.ops import FLASH_ATTENTION, PACKED_ATTENTION, ROTARY
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.merge_sibling_linears import join_linears
from torch2trt.passes.pieces import Piece, piece_of
from torch2trt.passes.views import RESHAPING, order_of
from torch2trt.settings import Settings
from torch2trt.sizes import evaluate, symbols

aten = torch.ops.aten

_HEADS_AND_TOKENS = (0, 2, 1, 3)
# Of the kernels that torch has for attention.
_WIDEST_HEAD = 256
# From so many on they are faster than those of TensorRT 10.6 on an H200: with 512, 1500 and 4096 whole models take
# 0.85 to 0.91 of the time (benchmarks/results), a ViT with 197 was slower. Of the sizes between nothing is known.
_LEAST_KEYS = 384


def plug_attention(program: Program, settings: Settings) -> None:
    """Let torch's kernels compute attention in halves, without a mask or causal, of many tokens.

    A plugin reads contiguous tensors, so queries, keys and values that are projected from one tensor stay in one, and
    are taken apart by the kernel. Rotary embeddings turn the heads of queries and keys together, where they lie.
    Done only where TensorRT has plugins; a plan that is to stand alone goes without.
    """
    for node in program.calls:
        if node.target is aten.scaled_dot_product_attention.default and IN_TORCH not in node.meta:
            found = _found(program, node)
            if found is not None:
                _rewrite(program, node, found)
    erase_unused(program.graph.graph)


@dataclass(frozen=True)
class _Part:
    """Queries, keys or values.

    Attributes:
        tensor: [N, heads, tokens, width], as attention reads them.
        rotary: the call that turns them, alike for all heads.
        behind: [N, tokens, heads, width], before they are turned, where the graph has them so.
        source: [N, tokens, channels], of which these are reshaped; of queries before a number scales them.
    """

    tensor: fx.Node
    rotary: fx.Node | None
    behind: fx.Node | None
    source: fx.Node | None

    @property
    def angles(self) -> tuple[Any, ...]:
        """Cosines and sines, and whether they are those of heads in front of tokens."""
        return () if self.rotary is None else (*self.rotary.args[1:], self.rotary is self.tensor)


@dataclass(frozen=True)
class _Attention:
    """What is to be rewritten.

    Attributes:
        parts: queries, keys and values.
        factor: a number that queries are multiplied by.
    """

    parts: tuple[_Part, ...]
    factor: float
    is_causal: bool
    scale: float


def _found(program: Program, node: fx.Node) -> _Attention | None:
    bound = bind(node)
    if bound["attn_mask"] is not None or bound["dropout_p"]:
        return None
    if program.spec(node).dtype not in (torch.float16, torch.bfloat16):
        return None
    tensors = tuple(bound[name] for name in ("query", "key", "value"))
    query, key, value = (program.spec(tensor).shape for tensor in tensors)
    if {len(shape) for shape in (query, key, value)} != {4} or query[0] != key[0] or key[:3] != value[:3]:
        return None
    counted = (*query[1::2], *key[1::2], *value[1::2])
    if not all(isinstance(size, int) for size in counted) or query[1] % key[1]:
        return None
    if any(width % 8 or width > _WIDEST_HEAD for width in (query[3], value[3])):
        return None
    usual = {name: span.opt for name, span in program.signature.dims.items()}
    if not symbols([key[2]]) <= usual.keys() or evaluate(key[2], usual) < _LEAST_KEYS:
        return None
    queries, *others = (_part(program, tensor) for tensor in tensors)
    source, factor = _unscaled(queries.source)
    scale = 1 / math.sqrt(query[3]) if bound["scale"] is None else bound["scale"]
    return _Attention((replace(queries, source=source), *others), factor, bound["is_causal"], scale)


def _part(program: Program, node: fx.Node) -> _Part:
    behind = _with_heads_behind(program, node)
    if behind is not None and _turns_heads_alike(program, behind, -2):
        inner = bind(behind)["input"]
        return _Part(node, behind, inner, _source(program, node, inner))
    if _turns_heads_alike(program, node, -3):
        inner = bind(node)["input"]
        behind = _with_heads_behind(program, inner)
        return _Part(node, node, behind, _source(program, inner, behind))
    return _Part(node, None, behind, _source(program, node, behind))


def _turns_heads_alike(program: Program, node: fx.Node, axis: int) -> bool:
    """Whether a call is a rotary embedding by angles that have no heads at an axis, which counts from the right."""
    if node.target is not ROTARY or IN_TORCH in node.meta:
        return False
    shapes = [program.spec(bind(node)[name]).shape for name in ("cos", "sin")]
    return all(len(shape) < -axis or shape[axis] == 1 for shape in shapes)


def _with_heads_behind(program: Program, node: fx.Node) -> fx.Node | None:
    """The tensor [N, tokens, heads, width] of which a node is the transpose."""
    return node.all_input_nodes[0] if order_of(program, node) == _HEADS_AND_TOKENS else None


def _source(program: Program, node: fx.Node, behind: fx.Node | None) -> fx.Node | None:
    """The tensor [N, tokens, channels] that a tensor [N, heads, tokens, width] shows the heads of.

    Args:
        behind: its transpose, where the graph has that.
    """
    count, tokens, width = (program.spec(node).shape[axis] for axis in (1, 2, 3))
    # The transpose of a single head is a reshape.
    reshaped = node if count == 1 and behind is None else behind
    if reshaped is None or reshaped.target not in RESHAPING or IN_TORCH in reshaped.meta:
        return None
    source = reshaped.all_input_nodes[0]
    wanted = (program.spec(node).shape[0], tokens, count * width)
    return source if program.spec(source).shape == wanted else None


def _unscaled(node: fx.Node | None) -> tuple[fx.Node | None, float]:
    """A tensor, and the number that makes of it what a node is; the node itself, and 1, where it is no such product."""
    if node is None or node.target is not aten.mul.Tensor or IN_TORCH in node.meta:
        return node, 1.0
    bound = bind(node)
    return (bound["input"], float(bound["other"])) if isinstance(bound["other"], (int, float)) else (node, 1.0)


def _rewrite(program: Program, node: fx.Node, found: _Attention) -> None:
    graph, bound = program.graph.graph, bind(node)
    with graph.inserting_before(node):
        packed = _packed(program, node, found.parts)
        if packed is not None:
            query, value = (program.spec(bound[name]).shape for name in ("query", "value"))
            counts = query[1], value[1], query[3], value[3]
            scale = found.scale * found.factor
            made = call(graph, PACKED_ATTENTION, *packed, *counts, found.is_causal, scale, like=node)
        else:
            given = [_heads_behind(program, part, like=node) for part in found.parts]
            made = call(graph, FLASH_ATTENTION, *given, found.is_causal, found.scale, like=node)
        result = call(graph, aten.permute.default, made, list(_HEADS_AND_TOKENS), like=node)
    for user in list(node.users):
        if order_of(program, user) == _HEADS_AND_TOKENS:
            user.replace_all_uses_with(made)
    node.replace_all_uses_with(result)


def _heads_behind(program: Program, part: _Part, *, like: fx.Node) -> fx.Node:
    """[N, tokens, heads, width], turned."""
    if part.behind is None:
        return call(like.graph, aten.permute.default, part.tensor, list(_HEADS_AND_TOKENS), like=like)
    return part.behind if part.rotary is None else _turned(program, part, part.behind, like=like)


def _turned(program: Program, part: _Part, heads: fx.Node, *, like: fx.Node) -> fx.Node:
    """Heads behind their tokens, turned as a part is."""
    assert part.rotary is not None
    angles = [bind(part.rotary)[name] for name in ("cos", "sin")]
    if part.rotary is part.tensor:
        angles = [_angles_behind(program, angle, like=like) for angle in angles]
    return call(like.graph, ROTARY, heads, *angles, like=like)


def _angles_behind(program: Program, angle: fx.Node, *, like: fx.Node) -> fx.Node:
    """Angles of heads in front of tokens, for heads behind them."""
    rank = program.spec(angle).rank
    if rank > 2:
        angle = call(like.graph, aten.squeeze.dim, angle, rank - 3, like=like)
    return angle if rank < 2 else call(like.graph, aten.unsqueeze.default, angle, -2, like=like)


def _packed(
    program: Program, node: fx.Node, parts: Sequence[_Part]
) -> tuple[list[fx.Node], list[int], list[int]] | None:
    """The tensors in which queries, keys and values lie side by side, which of these each is in, and where it begins.

    Three projections of one tensor are made one for it. What is turned is another tensor, of queries and keys.
    """
    query, key, value = parts
    turned = query.rotary is not None
    if query.angles != key.angles or value.rotary is not None:
        return None
    shape = _shape_of_heads(query) if turned else []
    pieces = _pieces(program, [part.source for part in parts]) if shape is not None else None
    if shape is None or pieces is None:
        return None
    whole, starts = pieces[0].source, [piece.start for piece in pieces]
    if not turned:
        return [whole], [0, 0, 0], starts
    first, second = sorted(pieces[:2], key=lambda piece: piece.start)
    if first.end != second.start:
        return None
    width = program.spec(query.tensor).shape[3]
    count = sum(program.spec(part.tensor).shape[1] for part in (query, key))
    both = Piece(whole, 2, first.start, first.length + second.length).emit(like=node)
    heads = call(node.graph, aten.reshape.default, both, [*shape, count, width], like=node)
    return (
        [_turned(program, query, heads, like=node), whole],
        [0, 0, 1],
        [*(start - first.start for start in starts[:2]), starts[2]],
    )


def _shape_of_heads(part: _Part) -> list[Any] | None:
    """N and tokens, as the reshape that takes heads apart is given them."""
    if part.behind is None or part.behind.target is not aten.reshape.default:
        return None
    shape = bind(part.behind)["shape"]
    return list(shape[:2]) if len(shape) == 4 else None


def _pieces(program: Program, parts: Sequence[fx.Node | None]) -> list[Piece] | None:
    """Three tensors as pieces of one; projections of one tensor are made one."""
    known = [part for part in parts if part is not None]
    if len(known) != 3:
        return None
    pieces = [piece_of(program, part) for part in known]
    if pieces == [None, None, None]:
        pieces = [piece_of(program, part) for part in join_linears(program, known)]
    found = [piece for piece in pieces if piece is not None and (piece.dim, piece.step) == (2, 1)]
    return None if len(found) != 3 or len({piece.source for piece in found}) > 1 else found
