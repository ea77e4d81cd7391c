"""Attention that engines leave to torch's kernels, as plugins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.ops import FLASH_ATTENTION, PACKED_ATTENTION
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.merge_sibling_linears import join_linears
from torch2trt.passes.pieces import piece_of
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
    are taken apart by the kernel. Done only where TensorRT has plugins; a plan that is to stand alone goes without.
    """
    for node in program.calls:
        if node.target is aten.scaled_dot_product_attention.default and IN_TORCH not in node.meta:
            found = _found(program, node)
            if found is not None:
                _rewrite(program, node, found)
    erase_unused(program.graph.graph)


@dataclass(frozen=True)
class _Attention:
    """What is to be rewritten.

    Attributes:
        tensors: queries, keys and values with their heads behind their tokens, where the graph has them so.
        sources: [N, tokens, channels], of which these are reshaped; queries before ``factor`` scales them.
        factor: a number that queries are multiplied by.
    """

    tensors: tuple[fx.Node | None, ...]
    sources: tuple[fx.Node | None, ...]
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
    behind = tuple(_with_heads_behind(program, tensor) for tensor in tensors)
    queries, *rest = (_source(program, *each) for each in zip(tensors, behind, strict=True))
    queries, factor = _unscaled(queries)
    scale = 1 / math.sqrt(query[3]) if bound["scale"] is None else bound["scale"]
    return _Attention(behind, (queries, *rest), factor, bound["is_causal"], scale)


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
    packed = _packed(program, found.sources)
    with graph.inserting_before(node):
        if packed is not None:
            query, value = (program.spec(bound[name]).shape for name in ("query", "value"))
            counts = query[1], value[1], query[3], value[3]
            scale = found.scale * found.factor
            made = call(graph, PACKED_ATTENTION, *packed, *counts, found.is_causal, scale, like=node)
        else:
            given = [
                behind or call(graph, aten.permute.default, bound[name], list(_HEADS_AND_TOKENS), like=node)
                for name, behind in zip(("query", "key", "value"), found.tensors, strict=True)
            ]
            made = call(graph, FLASH_ATTENTION, *given, found.is_causal, found.scale, like=node)
        result = call(graph, aten.permute.default, made, list(_HEADS_AND_TOKENS), like=node)
    for user in list(node.users):
        if order_of(program, user) == _HEADS_AND_TOKENS:
            user.replace_all_uses_with(made)
    node.replace_all_uses_with(result)


def _packed(program: Program, sources: Sequence[fx.Node | None]) -> tuple[fx.Node, list[int]] | None:
    """The tensor in which queries, keys and values lie side by side, and where each begins.

    Three projections of one tensor are made one for it.
    """
    parts = [source for source in sources if source is not None]
    if len(parts) != 3:
        return None
    pieces = [piece_of(program, part) for part in parts]
    if pieces == [None, None, None]:
        pieces = [piece_of(program, part) for part in join_linears(program, parts)]
    found = [piece for piece in pieces if piece is not None and (piece.dim, piece.step) == (2, 1)]
    if len(found) != 3 or len({piece.source for piece in found}) > 1:
        return None
    return found[0].source, [piece.start for piece in found]
