"""Attention that engines leave to torch's kernels, as plugins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from torch2trt.graph.plugged_ops import FLASH_ATTENTION, PACKED_ATTENTION
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.attention_parts import Part, part_of
from torch2trt.passes.merge_sibling_linears import join_linears, reads_slices_of
from torch2trt.passes.packed_heads import pieces_of_one, replace_heads, unscaled
from torch2trt.passes.pieces import Piece, piece_of
from torch2trt.settings import Settings

aten = torch.ops.aten

# Of the kernels that torch has for attention.
_WIDEST_HEAD = 256
# From so many on they are faster than those of TensorRT 10.6 on an H200: with 512, 1500 and 4096 whole models take
# 0.85 to 0.91 of the time (benchmarks/results), a ViT with 197 was slower. Of the sizes between nothing is known.
_LEAST_KEYS = 384
# They read so many channels at once, from addresses that are multiples of that.
_ALIGNED = 8


def plug_attention(program: Program, settings: Settings) -> None:
    """Let torch's kernels compute attention in halves, without a mask or causal, of many tokens.

    A plugin reads contiguous tensors, so queries, keys and values that are projected from one tensor stay in one, and
    are taken apart by the kernel. Rotary embeddings turn the heads of queries and keys together, where they lie; what
    is changed in other ways is a tensor of its own. Done only where TensorRT has plugins; a plan that is to stand alone
    goes without.
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
        parts: queries, keys and values; the source of queries is what a number scales.
        factor: that number.
    """

    parts: tuple[Part, ...]
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
    if any(width % _ALIGNED or width > _WIDEST_HEAD for width in (query[3], value[3])):
        return None
    if (program.usual(key[2]) or 0) < _LEAST_KEYS:
        return None
    queries, *others = (part_of(program, tensor) for tensor in tensors)
    source, factor = unscaled(queries.source)
    scale = 1 / math.sqrt(query[3]) if bound["scale"] is None else bound["scale"]
    return _Attention((replace(queries, source=source), *others), factor, bound["is_causal"], scale)


def _rewrite(program: Program, node: fx.Node, found: _Attention) -> None:
    graph, bound = program.graph.graph, bind(node)
    with graph.inserting_before(node):
        packed = _turned_together(program, node, found.parts) or _in_place(program, node, found.parts)
        if packed is not None:
            query, value = (program.spec(bound[name]).shape for name in ("query", "value"))
            counts = query[1], value[1], query[3], value[3]
            scale = found.scale * (found.factor if packed.unscaled else 1.0)
            places = packed.sources, packed.places, packed.starts
            made = call(graph, PACKED_ATTENTION, *places, *counts, found.is_causal, scale, like=node)
        else:
            given = [part.emit_behind(program, like=node) for part in found.parts]
            made = call(graph, FLASH_ATTENTION, *given, found.is_causal, found.scale, like=node)
    replace_heads(program, node, made)


# Where queries, keys and values lie -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packed:
    """The tensors that queries, keys and values lie in, which of these each is in, and where it begins.

    Attributes:
        unscaled: whether queries are as they were before a number scaled them.
    """

    sources: list[fx.Node]
    places: list[int]
    starts: list[int]
    unscaled: bool


def _turned_together(program: Program, node: fx.Node, parts: Sequence[Part]) -> _Packed | None:
    """All three out of one projection, or of two tensors where rotary embeddings turn queries and keys alike.

    Three projections of one tensor are made one for it.
    """
    query, key, value = parts
    turned = query.rotary is not None
    shape = query.shape_behind if turned else []
    if query.angles != key.angles or value.rotary is not None or shape is None:
        return None
    pieces = pieces_of_one(program, [part.source for part in parts])
    if pieces is None or not all(_is_readable(program, piece) for piece in pieces):
        return None
    whole, starts = pieces[0].source, [piece.start for piece in pieces]
    if not turned:
        return _Packed([whole], [0, 0, 0], starts, unscaled=True)
    first, second = sorted(pieces[:2], key=lambda piece: piece.start)
    if first.end != second.start:
        return None
    count = [program.spec(part.tensor).shape[1] for part in (query, key)]
    both = Piece(whole, 2, first.start, first.length + second.length).emit(like=node)
    wanted = [*shape, sum(count), program.spec(query.tensor).shape[3]]
    heads = call(node.graph, aten.reshape.default, both, wanted, like=node)
    made = query.emit_turned(program, heads, like=node)
    begin = [*(start - first.start for start in starts[:2]), starts[2]]
    return _Packed([made, whole], [0, 0, 1], begin, unscaled=True)


def _in_place(program: Program, node: fx.Node, parts: Sequence[Part]) -> _Packed | None:
    """What nothing changes out of the projection that it is a piece of, and the others as they are.

    Projections of the tensor that values are projected from are made one. None where nothing is a piece of one.
    """
    pieces = [_piece_of_projection(program, part) for part in _joined(program, parts)]
    if not any(pieces):
        return None
    taken = [
        part.emit_behind(program, like=node) if piece is None else piece.source
        for part, piece in zip(parts, pieces, strict=True)
    ]
    sources = list(dict.fromkeys(taken))
    starts = [0 if piece is None else piece.start for piece in pieces]
    return _Packed(sources, [sources.index(each) for each in taken], starts, unscaled=pieces[0] is not None)


def _piece_of_projection(program: Program, part: Part) -> Piece | None:
    piece = None if part.rotary is not None or part.source is None else piece_of(program, part.source)
    if piece is None or piece.source.target is not aten.linear.default or not _is_readable(program, piece):
        return None
    return piece


def _is_readable(program: Program, piece: Piece) -> bool:
    """Whether torch's kernels can read a piece where it lies: channels in a row, each row aligned."""
    row = program.spec(piece.source).shape[-1]
    return (piece.dim, piece.step, piece.start % _ALIGNED) == (2, 1, 0) and isinstance(row, int) and not row % _ALIGNED


def _joined(program: Program, parts: Sequence[Part]) -> Sequence[Part]:
    """The parts, with the projections of one tensor as one where all that uses them reads slices as well."""
    value = parts[2].source
    if value is None or value.target is not aten.linear.default:
        return parts
    given = bind(value)["input"]
    layers = [each for part in parts for each in _layers_behind(part.tensor) if bind(each)["input"] is given]
    layers = list(dict.fromkeys(layers))
    if len(layers) < 2 or not all(reads_slices_of(layer) for layer in layers):
        return parts
    made = dict(zip(layers, join_linears(program, layers), strict=False))
    return [part if part.source is None else replace(part, source=made.get(part.source, part.source)) for part in parts]


def _layers_behind(node: fx.Node) -> Iterator[fx.Node]:
    """The linear layers that a tensor is made from, each without those before it."""
    seen, pending = {node}, [node]
    while pending:
        each = pending.pop()
        if each.target is aten.linear.default:
            yield each
            continue
        pending += [source for source in each.all_input_nodes if source not in seen]
        seen.update(each.all_input_nodes)
