"""Attention's zero for queries that may attend to nothing, put in after the projection that follows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import fx

from torch2trt.graph.ops import ATTENTION
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call, only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.views import PERMUTING, View, axes_of, emit
from torch2trt.settings import Settings
from torch2trt.sizes import volume

aten = torch.ops.aten

_Seeing = dict[tuple[fx.Node, tuple[int, ...], int], fx.Node]


def defer_blind_queries(program: Program, settings: Settings) -> None:
    """Let masked attention give anything where a query may attend to nothing, and correct what its projection makes.

    Torch's result is zero there. Deciding that inside attention keeps TensorRT from its fastest kernels, and after it
    costs a pass over the result; the linear layer that follows makes its bias of a row of zeros, and choosing between
    the two becomes part of whatever comes next.

    Left alone are masks made of weights, whose values say whether any query sees nothing, and masks that differ between
    the heads that the projection joins.
    """
    seeing: _Seeing = {}
    for node in program.calls:
        if node.target is aten.scaled_dot_product_attention.default:
            bound = bind(node)
            mask = bound["attn_mask"]
            if mask is None or mask in program.weight_placeholders or bound["dropout_p"]:
                continue
            chain = _chain(program, node, mask)
            if chain is not None:
                _rewrite(program, node, chain, seeing)


class _Chain(NamedTuple):
    """From attention to the projection of its joined heads."""

    axes: tuple[int, ...]
    """The order into which the result's dimensions are brought."""
    joined: int
    """The last dimensions in that order that become the projection's channels."""
    linear: fx.Node


def _chain(program: Program, node: fx.Node, mask: fx.Node) -> _Chain | None:
    permute = only_user(node)
    if permute is None or permute.target not in PERMUTING:
        return None
    reshape = only_user(permute)
    if reshape is None or reshape.target is not aten.reshape.default:
        return None
    linear = only_user(reshape)
    if linear is None or linear.target is not aten.linear.default or linear.args[0] is not reshape:
        return None
    before, after = program.spec(permute).shape, program.spec(reshape).shape
    joined = next((count for count in range(1, len(before)) if volume(before[-count:]) == after[-1]), None)
    if joined is None or before[:-joined] != after[:-1]:
        return None
    axes = axes_of(permute, len(before))
    mine = program.spec(mask).shape
    seen = (*(1 for _ in range(len(before) - len(mine))), *mine[:-1], 1)
    return _Chain(axes, joined, linear) if all(seen[axis] == 1 for axis in axes[-joined:]) else None


def _rewrite(program: Program, node: fx.Node, chain: _Chain, seeing: _Seeing) -> None:
    graph, bound = program.graph.graph, bind(node)
    mask, linear = bound["attn_mask"], chain.linear
    with graph.inserting_before(node):
        attention = call(
            graph,
            ATTENTION,
            *(bound[name] for name in ("query", "key", "value", "attn_mask", "scale", "enable_gqa")),
            like=node,
        )
        key = mask, chain.axes, chain.joined
        if key not in seeing:
            seeing[key] = _seeing(program, node, chain, mask)
    node.replace_all_uses_with(attention)
    graph.erase_node(node)
    with graph.inserting_after(linear):
        bias = bind(linear)["bias"]
        if bias is None:
            chosen = call(graph, aten.where.ScalarOther, seeing[key], linear, 0.0, like=node)
        else:
            chosen = call(graph, aten.where.self, seeing[key], linear, bias, like=node)
    linear.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen)


def _seeing(program: Program, node: fx.Node, chain: _Chain, mask: fx.Node) -> fx.Node:
    """Whether each query may attend to anything: the projection's shape, with 1 for its channels."""
    graph, rank = program.graph.graph, len(chain.axes)
    if program.spec(mask).dtype != torch.bool:
        mask = call(graph, aten.gt.Scalar, mask, -math.inf, like=node)
    for _ in range(rank - len(program.spec(mask).shape)):
        mask = call(graph, aten.unsqueeze.default, mask, 0, like=node)
    seen = call(graph, aten.any.dim, mask, -1, True, like=node)
    joined = range(rank - chain.joined, rank - 1)
    # Mostly a reshape: TensorRT lets a transpose spread to what the choice is fused with.
    view = View.of(program.spec(seen).shape).permute(chain.axes)
    flat = view.reshape(tuple(size for axis, size in enumerate(view.shape) if axis not in joined))
    made = None if flat is None else emit(program, seen, flat, like=node)
    if made is None:
        seen = call(graph, aten.permute.default, seen, list(chain.axes), like=node)
        made = call(graph, aten.squeeze.dims, seen, list(joined), like=node) if joined else seen
    return made
