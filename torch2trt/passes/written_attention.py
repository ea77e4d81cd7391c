"""Attention that a module writes out as products and a softmax, with constants added to the scores."""

from __future__ import annotations

import operator
from collections.abc import Set
from dataclasses import dataclass, replace

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH
from torch2trt.graph.schema import bind
from torch2trt.passes.views import RESHAPING
from torch2trt.sizes import Shape

aten = torch.ops.aten

_PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default})
_SCALING = frozenset({aten.mul.Tensor, aten.div.Tensor})


@dataclass(frozen=True)
class Written:
    """``softmax(query @ transposed * scale + sum(added)) @ value``.

    Attributes:
        query: [N, heads, L, width].
        transposed: of the keys, [N, heads, width, S].
        value: [N, heads, S, value_width].
        scale: of the product.
        added: constants, each with its shape of as many dimensions as those that it broadcasts to: [N, heads, L, S], or
            [N // W, W, heads, L, S].
    """

    query: fx.Node
    transposed: fx.Node
    value: fx.Node
    scale: float = 1.0
    added: tuple[tuple[fx.Node, Shape], ...] = ()


def written_attention(program: Program, node: fx.Node, constant: Set[fx.Node]) -> Written | None:
    """The attention whose result a node is, where nothing else uses what it computes on the way.

    Args:
        constant: the nodes that depend on no input.
    """
    if node.target not in _PRODUCTS or IN_TORCH in node.meta:
        return None
    weights, value = node.all_input_nodes if len(node.all_input_nodes) == 2 else (None, None)
    softmax = None if weights is None else _before_casts(weights)
    if softmax is None or value is None or softmax.target is not aten.softmax.int or not _serves_once(softmax):
        return None
    bound = bind(softmax)
    if bound["dim"] not in (-1, program.spec(softmax).rank - 1):
        return None
    found: Written | None = Written(node, node, value)
    scores: fx.Node | None = bound["input"]
    while found is not None and scores is not None and scores.target not in _PRODUCTS:
        if not _serves_once(scores):
            return None
        found, scores = _without(program, found, scores, constant)
    if found is None or scores is None or not _serves_once(scores):
        return None
    operands = scores.all_input_nodes
    return replace(found, query=operands[0], transposed=operands[1]) if len(operands) == 2 else None


def _serves_once(node: fx.Node) -> bool:
    return len(node.users) == 1 and IN_TORCH not in node.meta


def _before_casts(node: fx.Node) -> fx.Node | None:
    """What was cast from one floating dtype to another, if anything; None where the cast is used elsewhere too."""
    while node.target is aten._to_copy.default:
        dtype = bind(node)["dtype"]
        if not _serves_once(node) or dtype is None or not dtype.is_floating_point:
            return None
        node = node.all_input_nodes[0]
    return node


def _without(
    program: Program, found: Written, node: fx.Node, constant: Set[fx.Node]
) -> tuple[Written | None, fx.Node | None]:
    """One step from the softmax towards the product: what is found so far, and the node before."""
    if node.target is aten._to_copy.default:
        return found, _before_casts(node)
    if node.target in RESHAPING:
        return (found if _splits_batch(program, node) else None), node.all_input_nodes[0]
    before = [each for each in node.all_input_nodes if each not in constant]
    # What picks one of several results computes nothing from it.
    if node.target is operator.getitem or len(before) != 1 or program.spec(before[0]).shape != program.spec(node).shape:
        return None, None
    bound = bind(node)
    # Nobody scales what was added, too.
    if node.target is aten.add.Tensor and bound["alpha"] == 1 and found.scale == 1:
        rank = program.spec(node).rank
        added = [bound[name] for name in ("input", "other") if bound[name] is not before[0]]
        if not all(isinstance(each, fx.Node) for each in added):
            return None, None
        return replace(found, added=(*found.added, *((each, of_rank(program, each, rank)) for each in added))), before[
            0
        ]
    if node.target in _SCALING and isinstance(bound["other"], (int, float)):
        factor = bound["other"] if node.target is aten.mul.Tensor else 1 / bound["other"]
        return replace(found, scale=found.scale * factor), before[0]
    return None, None


def of_rank(program: Program, node: fx.Node, rank: int) -> Shape:
    """A tensor's shape with as many dimensions, of which the first have size 1."""
    shape = program.spec(node).shape
    return (*(1,) * (rank - len(shape)), *shape)


def _splits_batch(program: Program, node: fx.Node) -> bool:
    """Whether a reshape splits the entries of a batch into images and windows, or joins them again."""
    more, fewer = program.spec(node.all_input_nodes[0]).shape, program.spec(node).shape
    if len(more) < len(fewer):
        more, fewer = fewer, more
    return (len(more), len(fewer)) == (5, 4) and more[2:] == fewer[1:]
