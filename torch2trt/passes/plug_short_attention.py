"""Attention among few tokens that engines leave to a kernel in Triton, as plugins."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.plugged_ops import SHORT_ATTENTION
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.constants import constants, value_of
from torch2trt.passes.packed_heads import packed_in, replace_heads, source_of, unscaled
from torch2trt.passes.written_attention import Written, of_rank, written_attention
from torch2trt.settings import Settings
from torch2trt.sizes import Shape, Size

aten = torch.ops.aten

# What the kernel can hold at once.
_MOST_KEYS, _WIDEST_HEAD = 256, 128
# Where nothing is added, TensorRT 10.6's own kernels are nearly as fast (35 µs of a ViT's layer on an H200, this one
# 27), and need no plugin, before and after which kernels cannot overlap. With biases they take two to three times as
# long: without the pass, Swin-T at batch 32 takes 1.08 of the time (benchmarks/results).
_ALSO_PLAIN = False
# Fewer would leave most of its smallest tile empty.
_LEAST_KEYS = 32
# Elements of what is added to scores: more are not computed when the engine is built, and would be read in every run.
_LARGEST = 1 << 20
_HALVES = frozenset({torch.float16, torch.bfloat16})
_ADDED = _HALVES | {torch.bool, torch.float32}
_TOKENS_BEHIND = (0, 2, 3, 1)
# The kernel reads rows of such multiples fast.
_ALIGNED = 8


@dataclass(frozen=True)
class _Attention:
    """What is to be rewritten.

    Attributes:
        sources: [..., channels], of which queries, keys and values are heads.
        heads: [N, heads, L, width], of queries and keys.
        value_width: channels of a head's values.
        added: constants, each with its shape of four or five dimensions, as of :class:`Written`.
    """

    sources: tuple[fx.Node | None, ...]
    heads: Shape
    value_width: int
    scale: float
    added: tuple[tuple[fx.Node, Shape], ...]


def plug_short_attention(program: Program, settings: Settings) -> None:
    """Let a kernel in Triton compute self-attention of few tokens in halves, and what is added to its scores.

    Queries, keys and values are projected from one tensor into one. What is added is a constant: a mask, Swin's
    biases by position, or their sum, of some entries of the batch, which repeats. Attention to whose scores nothing is
    added stays as it is.

    Done only where TensorRT has plugins and Triton is installed.
    """
    if importlib.util.find_spec("triton") is None:
        return
    constant = constants(program)
    for node in program.calls:
        if program.is_size(node) or IN_TORCH in node.meta:
            continue
        found = _called(program, node, constant) or _written(program, node, constant)
        if found is not None and _fits(program, found):
            _rewrite(program, node, found)
    erase_unused(program.graph.graph)


def _called(program: Program, node: fx.Node, constant: Set[fx.Node]) -> _Attention | None:
    """A call of torch's attention."""
    if node.target is not aten.scaled_dot_product_attention.default:
        return None
    bound = bind(node)
    mask = bound["attn_mask"]
    if bound["is_causal"] or bound["dropout_p"] or not (mask is None or mask in constant):
        return None
    query, key, value = (bound[name] for name in ("query", "key", "value"))
    shape = program.spec(query).shape
    if len(shape) != 4 or program.spec(key).shape != shape:
        return None
    scale = 1 / math.sqrt(shape[3]) if bound["scale"] is None else bound["scale"]
    added = () if mask is None else ((mask, of_rank(program, mask, 4)),)
    return _of(program, Written(query, key, value, scale, added), source_of(program, key))


def _written(program: Program, node: fx.Node, constant: Set[fx.Node]) -> _Attention | None:
    """Attention that the module writes out."""
    found = written_attention(program, node, constant)
    if found is None or program.spec(found.query).rank != 4:
        return None
    first, heads, length, width = program.spec(found.query).shape
    if program.spec(found.transposed).shape != (first, heads, width, length):
        return None
    return _of(program, found, source_of(program, found.transposed, _TOKENS_BEHIND))


def _of(program: Program, found: Written, keys: fx.Node | None) -> _Attention | None:
    """What is found, in the tensors that queries, keys (``keys``) and values are heads of."""
    heads, values = program.spec(found.query).shape, program.spec(found.value).shape
    if values[:3] != heads[:3]:
        return None
    # Some scale queries before their heads are taken apart, and some afterwards.
    query, after = unscaled(found.query)
    queries, before = unscaled(None if query is None else source_of(program, query))
    sources = queries, keys, source_of(program, found.value)
    return _Attention(sources, heads, values[3], found.scale * after * before, found.added)


def _fits(program: Program, found: _Attention) -> bool:
    _, count, length, width = found.heads
    return (
        all(isinstance(size, int) for size in (count, length, width, found.value_width))
        and bool(found.added or _ALSO_PLAIN)
        and _LEAST_KEYS <= length <= _MOST_KEYS
        and all(size % 8 == 0 and size <= _WIDEST_HEAD for size in (width, found.value_width))
        and all(each is not None and program.spec(each).dtype in _HALVES for each in found.sources)
        and all(program.spec(each).dtype in _ADDED for each, _ in found.added)
    )


def _rewrite(program: Program, node: fx.Node, found: _Attention) -> None:
    graph = program.graph.graph
    with graph.inserting_before(node):
        bias = _bias(program, found, like=node) if found.added else None
    if found.added and bias is None:
        return
    _, count, length, width = found.heads
    packed = packed_in(program, found.sources, length)
    if packed is None:
        return
    with graph.inserting_before(node):
        sizes = count, width, found.value_width
        made = call(graph, SHORT_ATTENTION, *packed, *sizes, bias, found.scale, like=node)
    replace_heads(program, node, made)


def _bias(program: Program, found: _Attention, *, like: fx.Node) -> fx.Node | None:
    """What is added to scores, [M, heads or 1, L, S]; None where it has no such shape, is large, or hides all keys."""
    repeated = [_repeated(shape, found.heads[0]) for _, shape in found.added]
    shapes = [shape for shape in repeated if shape is not None]
    length = found.heads[2]
    try:
        period, heads, *_ = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None
    if len(shapes) < len(repeated) or period * heads * length * length > _LARGEST:
        return None
    graph, total = like.graph, None
    for (each, _), shape in zip(found.added, shapes, strict=True):
        if program.spec(each).dtype == torch.bool:
            each = call(graph, aten.where.Scalar, each, 0.0, -math.inf, like=like)
        each = call(graph, aten._to_copy.default, each, like=like, dtype=torch.float32)
        each = call(graph, aten.reshape.default, each, list(shape), like=like)
        total = each if total is None else call(graph, aten.add.Tensor, total, each, like=like)
    dtype = program.spec(like).dtype
    total = call(graph, aten._to_copy.default, total, like=like, dtype=dtype)
    total = call(graph, aten.expand.default, total, [period, heads, length, length], like=like)
    # Where all keys are hidden, it depends on the numbers that hide them, and on rounding, what comes out.
    if bool((value_of(program, total) <= torch.finfo(dtype).min).all(-1).any()):
        return None
    return call(graph, aten.constant_pad_nd.default, total, [0, -length % _ALIGNED], like=like)


def _repeated(shape: Shape, entries: Size) -> tuple[int, int, int, int] | None:
    """The shape of what is added with four dimensions, of which the first repeats along the batch; None without it."""
    if not all(isinstance(size, int) for size in shape):
        return None
    *images, period, heads, queries, keys = shape
    fits = images == [1] if images else period in (1, entries)
    return (period, heads, queries, keys) if fits else None
