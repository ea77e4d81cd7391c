"""Attention that engines leave to torch's kernels, as plugins."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.ops import FLASH_ATTENTION, PACKED_ATTENTION
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.packed_heads import (
    HEADS_AND_TOKENS,
    packed_in,
    replace_heads,
    source_of,
    unscaled,
    with_heads_behind,
)
from torch2trt.settings import Settings
from torch2trt.sizes import evaluate, symbols

aten = torch.ops.aten

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
    behind = tuple(with_heads_behind(program, tensor) for tensor in tensors)
    queries, *rest = (source_of(program, tensor) for tensor in tensors)
    queries, factor = unscaled(queries)
    scale = 1 / math.sqrt(query[3]) if bound["scale"] is None else bound["scale"]
    return _Attention(behind, (queries, *rest), factor, bound["is_causal"], scale)


def _rewrite(program: Program, node: fx.Node, found: _Attention) -> None:
    graph, bound = program.graph.graph, bind(node)
    packed = packed_in(program, found.sources, program.spec(bound["query"]).shape[2])
    with graph.inserting_before(node):
        if packed is not None:
            query, value = (program.spec(bound[name]).shape for name in ("query", "value"))
            counts = query[1], value[1], query[3], value[3]
            scale = found.scale * found.factor
            made = call(graph, PACKED_ATTENTION, *packed, *counts, found.is_causal, scale, like=node)
        else:
            given = [
                behind or call(graph, aten.permute.default, bound[name], list(HEADS_AND_TOKENS), like=node)
                for name, behind in zip(("query", "key", "value"), found.tensors, strict=True)
            ]
            made = call(graph, FLASH_ATTENTION, *given, found.is_causal, found.scale, like=node)
    replace_heads(program, node, made)
